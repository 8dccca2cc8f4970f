package mail

import (
	"strconv"
	"strings"
)

// MessageID gives the Message-ID of a delivery, in angle brackets: the same at every attempt, so that a repeat can be seen. It is
// derived from the tenant's number and the delivery, since delivery ids repeat across tenants.
func MessageID(tenant int32, delivery int64, domain string) string {
	return "<d" + strconv.FormatInt(delivery, 36) + ".t" + strconv.FormatInt(int64(tenant), 36) + "@" + domain + ">"
}

// ParseMessageID reads what MessageID made, with or without brackets. It proves nothing: anyone can write a Message-ID.
func ParseMessageID(id string) (tenant int32, delivery int64, ok bool) {
	id = strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(id), "<"), ">")
	local, domain, ok := strings.Cut(id, "@")
	d, t, both := strings.Cut(local, ".t")
	if !ok || !both || domain == "" || !strings.HasPrefix(d, "d") {
		return 0, 0, false
	}
	delivery, err := strconv.ParseInt(d[1:], 36, 64)
	if err != nil || delivery < 1 || strconv.FormatInt(delivery, 36) != d[1:] {
		return 0, 0, false
	}
	number, err := strconv.ParseInt(t, 36, 32)
	if err != nil || number < 1 || strconv.FormatInt(number, 36) != t {
		return 0, 0, false
	}
	return int32(number), delivery, true
}

// returnPathUser is the local part before the token. With + as the delimiter, a return-path domain on Postfix or Exim can be one
// mailbox named b.
const returnPathUser = "b"

// ReturnPath gives the envelope sender that carries a return-path token (variable envelope return path): b+TOKEN@domain.
func ReturnPath(token, domain string) string { return returnPathUser + "+" + token + "@" + domain }

// ReturnPathToken finds the token in an address that ReturnPath made, whatever became of its case and delimiter on the way.
func ReturnPathToken(addr string) (string, bool) {
	local, _, _ := strings.Cut(strings.Trim(strings.TrimSpace(addr), "<>"), "@")
	local = strings.ToLower(local)
	if len(local) < 3 || local[:1] != returnPathUser || !strings.ContainsRune("+-=", rune(local[1])) {
		return "", false
	}
	token := local[2:]
	if !isToken(token) {
		return "", false
	}
	return token, true
}

// isToken tells whether text can be a token: base32, of a length that occurs. Package token decides whether it is one.
func isToken(s string) bool {
	return len(s) >= 16 && len(s) <= 56 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz234567") == ""
}
