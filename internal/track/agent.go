package track

import (
	"slices"
	"strings"

	"github.com/mileusna/useragent"
)

// agentRule says that a request whose User-Agent has one of the words in it (in small letters) was made by a machine.
type agentRule struct {
	reason string
	kinds  []string // of hits; empty for all
	words  []string
}

// agentRules are tried in order.
func agentRules() []agentRule {
	return []agentRule{
		// They fetch a mail's images when it arrives, or for everybody at once: nobody need have looked.
		{"image-proxy", []string{kindOpen}, []string{"googleimageproxy", "ggpht.com", "yahoomailproxy", "yahoo pipes", "outlook-ios-android-imageproxy", "mail.ru image proxy", "yandeximageresizer"}},
		// They follow links to look for malware.
		{"scanner", nil, []string{
			"barracuda", "proofpoint", "mimecast", "symantec", "messagelabs", "trendmicro", "trend micro", "sophos", "fireeye", "forcepoint", "websense",
			"zscaler", "cloudmark", "safelinks", "microsoft office protection", "urlscan", "virustotal", "phishtank", "netcraft", "checkpoint", "ironport", "cisco-",
		}},
		// They show a preview of a link in a chat.
		{"preview", nil, []string{
			"skypeuripreview", "slackbot", "facebookexternalhit", "facebot", "whatsapp", "telegrambot", "twitterbot", "linkedinbot", "discordbot", "bingpreview",
			"google-read-aloud", "google-pagerenderer", "embedly", "vkshare", "pinterest/", "redditbot", "iframely", "mattermost", "microsoftpreview", "teamsbot",
		}},
		// Programs, not browsers.
		{"program", nil, []string{
			"curl/", "wget/", "python-requests", "python-urllib", "aiohttp", "httpx", "go-http-client", "java/", "okhttp", "apache-httpclient", "axios/", "node-fetch",
			"undici", "libwww-perl", "php/", "guzzle", "ruby", "headlesschrome", "phantomjs", "puppeteer", "playwright", "selenium", "powershell", "postman",
		}},
		{"bot", nil, []string{"bot/", "bot;", "bot ", "crawler", "spider", "feedfetcher", "slurp", "monitor", "preview", "scan", "http-client", "httpclient"}},
	}
}

// machine tells why a single request was made by a machine, by its method and agent alone; empty when it may have been a person.
func machine(kind, method, agent string) string {
	if method == "HEAD" {
		return "head"
	}
	low := strings.ToLower(strings.TrimSpace(agent))
	if low == "" {
		return "no-agent"
	}
	// Apple Mail Privacy Protection loads all images of all mails in advance, under this name and no other.
	if kind == kindOpen && low == "mozilla/5.0" {
		return "apple-mpp"
	}
	for _, rule := range agentRules() {
		if len(rule.kinds) > 0 && !slices.Contains(rule.kinds, kind) {
			continue
		}
		for _, w := range rule.words {
			if strings.Contains(low, w) {
				return rule.reason
			}
		}
	}
	if useragent.Parse(agent).Bot {
		return "bot"
	}
	return ""
}
