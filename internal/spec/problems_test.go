package spec

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

// head makes a document of a kind and the lines of its spec.
func head(kind, name, body string) string {
	return "apiVersion: onda/v1\nkind: " + kind + "\nmetadata: {name: " + name + "}\nspec:\n" + body
}

// The company that the documents of these tests live in.
const company = `apiVersion: onda/v1
kind: Topic
metadata: {name: news}
spec: {optIn: single}
---
apiVersion: onda/v1
kind: Topic
metadata: {name: tips}
spec: {optIn: double}
---
apiVersion: onda/v1
kind: Field
metadata: {name: country}
spec: {type: country, visitorWritable: true}
---
apiVersion: onda/v1
kind: Field
metadata: {name: plan}
spec: {type: select, options: [free, paid]}
---
apiVersion: onda/v1
kind: Field
metadata: {name: level}
spec: {type: number}
---
apiVersion: onda/v1
kind: Field
metadata: {name: ends}
spec: {type: date}
---
apiVersion: onda/v1
kind: Field
metadata: {name: likes}
spec: {type: multiselect, options: [ski, sail]}
---
apiVersion: onda/v1
kind: Segment
metadata: {name: vips}
spec: {where: {tag: vip}}
---
apiVersion: onda/v1
kind: Email
metadata: {name: hello}
spec: {topic: news, from: a@x.example, subject: s, html: "{{ unsubscribe_url }}"}
---
apiVersion: onda/v1
kind: Email
metadata: {name: tip}
spec: {topic: tips, from: a@x.example, subject: s, html: "{{ unsubscribe_url }}"}
---
apiVersion: onda/v1
kind: Email
metadata: {name: confirm}
spec: {transactional: true, from: a@x.example, subject: s, html: "{{ confirm_url }}"}
---
apiVersion: onda/v1
kind: Form
metadata: {name: join}
spec:
  locales: {default: en, texts: {en: {title: t, submit: s, email: e, ok: o}}}
  inputs: [{field: email, required: true}]
  confirm: {email: confirm}
  result: {message: ok}
`

type badCase struct {
	name string
	doc  string
	want []string // problems without the file's name
	// blind is for what a JSON Schema cannot say: other documents, the
	// calendar, templates, what holds between values
	blind bool
}

func steps(s string) string { return head("Campaign", "c", "  enter: {segment: vips}\n  steps:\n"+s) }

func where(s string) string { return head("Segment", "s", "  where: "+s+"\n") }

func badCases() []badCase {
	return []badCase{
		{"no kind", "apiVersion: onda/v1\n", []string{`1:1: "kind" is missing: one of Settings, Domain, Field, Topic, Segment, Layout, Email, Campaign, Form, Broadcast`}, false},
		{"unknown kind", head("Segmant", "s", "  {}"), []string{`2:7: unknown kind "Segmant", did you mean "Segment"?`}, false},
		{"domain without a domain", head("Domain", "s", "  {signer: onda}"), []string{`5:3: "domain" is missing`}, false},
		{"domain that is none", head("Domain", "s", "  domain: news\n  signer: onda\n"), []string{`5:11: must be a domain such as example.com, not "news"`}, false},
		{"domain with a label that is too long", head("Domain", "s", "  domain: "+strings.Repeat("a", 64)+".example\n  signer: onda\n"), []string{`5:11: not a domain: "` + strings.Repeat("a", 64) + `.example"`}, true},
		{"domain with a hyphen in front", head("Domain", "s", "  domain: -a.example\n  signer: onda\n"), []string{`5:11: not a domain: "-a.example"`}, true},
		{"signer unknown", head("Domain", "s", "  domain: a.example\n  signer: ondo\n"), []string{`6:11: unknown value "ondo", did you mean "onda"?`}, false},
		{"relay's signature without selectors", head("Domain", "s", "  domain: a.example\n"), []string{`5:3: "dkim" is missing: the selectors that the relay signs with; or let Onda sign, with signer: onda`}, false},
		{"selectors of Onda's", head("Domain", "s", "  domain: a.example\n  signer: onda\n  dkim: {selectors: [x]}\n"), []string{`7:3: Onda's own selectors are made by onda domain key: leave dkim out`}, false},
		{"no selectors", head("Domain", "s", "  domain: a.example\n  dkim: {selectors: []}\n"), []string{`6:21: the list must not be empty`}, false},
		{"selector with a space", head("Domain", "s", "  domain: a.example\n  dkim: {selectors: [\"a b\"]}\n"), []string{`6:22: must be a selector such as s1, not "a b"`}, false},
		{"SPF that is no mechanism", head("Domain", "s", "  domain: a.example\n  signer: onda\n  spf: relay.example\n"), []string{`7:8: must be a mechanism of SPF such as include:spf.relay.example or ip4:192.0.2.1, not "relay.example"`}, false},
		{"SPF with a bad network", head("Domain", "s", "  domain: a.example\n  signer: onda\n  spf: [ip4:192.0.2.1/33]\n"), []string{`7:9: not an address or network: "192.0.2.1/33"`}, true},
		{"SPF with the other kind of address", head("Domain", "s", "  domain: a.example\n  signer: onda\n  spf: [\"ip6:192.0.2.1\"]\n"), []string{`7:9: not an address or network of ip6: "192.0.2.1"`}, true},
		{"two documents of one domain", head("Domain", "s", "  domain: Bücher.example\n  signer: onda\n") + "---\n" + head("Domain", "t", "  domain: xn--bcher-kva.example\n  signer: onda\n"), []string{`5:11: the Domain "t" is of xn--bcher-kva.example too: one document a domain`, `12:11: the Domain "s" is of xn--bcher-kva.example too: one document a domain`}, true},
		{"wrong version", strings.Replace(where("{tag: a}"), "onda/v1", "onda/v2", 1), []string{`1:13: unknown value "onda/v2", did you mean "onda/v1"?`}, false},
		{"no name", "apiVersion: onda/v1\nkind: Topic\nmetadata: {title: x}\nspec: {}\n", []string{`3:11: "name" is missing`}, false},
		{"bad name", head("Topic", "No_Good", "  {}"), []string{`3:18: must be a name of small letters, digits and -, not "No_Good"`}, false},
		{"unknown key", head("Topic", "t", "  optin: single\n"), []string{`5:3: unknown key "optin", did you mean "optIn"?`}, false},
		{"wrong type", head("Topic", "t", "  public: yes\n"), []string{`5:11: must be true or false, not "yes"`}, false},
		{"no value", head("Topic", "t", "  public:\n"), []string{`5:3: there is no value here: it must be true or false`}, false},
		{"key twice", head("Topic", "t", "  public: true\n  public: true\n"), []string{`6:3: not readable as YAML: mapping key "public" already defined at [5:3]`}, true},
		{"anchor", head("Topic", "t", "  public: &x true\n"), []string{`5:11: anchors and aliases are not part of the language: write it out`}, true},
		{"tab", "apiVersion: onda/v1\n\tkind: x\n", []string{"2:1: not readable as YAML: found character '\t' that cannot start any token"}, true},

		{"unknown operator", where("{field: level, gtee: 50}"), []string{`5:25: unknown operator "gtee", did you mean "gte"?`}, false},
		{"no operator", where("{field: level}"), []string{`5:10: an operator is missing, such as is, in or exists`}, false},
		{"two operators", where("{field: level, gte: 5, lt: 9}"), []string{`5:33: there is "gte" already: one operator at a time, the others in all: [...]`}, false},
		{"unknown predicate", where("{feild: level, is: 1}"), []string{`5:11: unknown predicate "feild", did you mean "field"?`}, false},
		{"a predicate that comes later", where("{device: phone}"), []string{`5:11: this version does not have the predicate "device" yet`}, false},
		{"a predicate about a stage that is not listed", where("{stage: hto}") + "---\n" + head("Settings", "settings", "  stages: [hot, won]\n"), []string{`5:18: unknown stage "hto", did you mean "hot"?, as the Settings have them`}, true},
		{"two predicates", where("{tag: a, segment: vips}"), []string{`5:19: there is "tag" already: one predicate at a time`}, false},
		{"empty all", where("{all: []}"), []string{`5:16: the list must not be empty`}, false},
		{"unknown field", where("{field: contry, in: [FR]}"), []string{`5:18: unknown field "contry", did you mean "country"?`}, true},
		{"operator that does not fit", where("{field: country, gte: 5}"), []string{`5:27: gte does not fit the field "country", a country: use one of is, isNot, in, notIn, exists`}, true},
		{"value that does not fit", where("{field: level, is: high}"), []string{`5:29: the field "level" is a number: "high" is none, write one such as 5 or 2.5`}, true},
		{"option that is not there", where("{field: plan, in: [free, paidd]}"), []string{`5:35: unknown option "paidd", did you mean "paid"? of the field "plan"`}, true},
		{"country that is none", where("{field: country, is: Norway}"), []string{`5:31: the field "country" is a country: "Norway" is no code such as NO or FR`}, true},
		{"regular expression", where(`{field: email, matches: "a("}`), []string{"5:34: not a regular expression: missing closing ): `(?i:a()`"}, true},
		{"between upside down", where("{field: level, between: [9, 1]}"), []string{`5:34: the lowest comes first: 9 is above 1`}, true},
		{"between of three", where("{field: level, between: [9, 1, 3]}"), []string{`5:34: must be a list of two, the lowest and the highest, such as [50, 100]`}, false},
		{"date that is none", where("{field: ends, before: 2026-02-30}"), []string{`5:32: not a date: "2026-02-30": write it as 2026-06-30, 2026-06-30T09:00, today, now or -30d`}, true},
		{"duration", where("{field: ends, inLast: 3 days}"), []string{`5:32: must be a duration such as 30m, 12h, 3d, 2w, 6mo or 1y, not "3 days"`}, false},
		{"unknown event", where("{event: email.cliked}"), []string{`5:18: unknown event "email.cliked", did you mean "email.clicked"?`}, false},
		{"of on an own event", where("{event: order.placed, of: x}"), []string{`5:36: the event "order.placed" has no of: use where, for its properties`}, true},
		{"of an unknown email", where("{event: email.clicked, of: helo}"), []string{`5:37: unknown email "helo", did you mean "hello"?`}, true},
		{"within and between", where("{event: a.b, within: 3d, between: [2026-01-01, 2026-02-01]}"), []string{`5:35: there is "within" already: only one of within, between may be given`}, false},
		{"topic state", where("{topic: news, state: subscrbed}"), []string{`5:31: unknown value "subscrbed", did you mean "subscribed"?`}, false},
		{"unknown topic", where("{reachable: nws}"), []string{`5:22: unknown topic "nws", did you mean "news"?`}, true},
		{"sample", where("{sample: 0, seed: a}"), []string{`5:19: must be a number above 0, at most 100, not 0`}, false},
		{"segment of itself", where("{any: [{tag: a}, {not: {segment: s}}]}"), []string{`5:3: the segment is made of itself: s → s; take it out of one of them`}, true},
		{"circle of segments", where("{segment: s2}") + "---\n" + head("Segment", "s2", "  where: {segment: s}\n"), []string{
			`5:3: the segment is made of itself: s → s2 → s; take it out of one of them`, `11:3: the segment is made of itself: s2 → s → s2; take it out of one of them`,
		}, true},
		{"where and members", head("Segment", "s", "  where: {tag: a}\n  members: manual\n"), []string{`6:3: there is "where" already: only one of where, members may be given`}, false},

		{"unknown step", steps("    - {sned: {email: hello}}\n"), []string{`7:8: unknown step "sned", did you mean "send"?`}, false},
		{"a step that comes later", steps("    - {split: []}\n"), []string{`7:8: this version does not have the step "split" yet`}, false},
		{"two actions", steps("    - {exit: done, send: {email: hello}}\n"), []string{`7:8: there is "send" already: one step at a time`}, false},
		{"id twice", steps("    - {id: a, exit: x}\n    - {id: a, exit: y}\n"), []string{`8:12: the id "a" is taken by the step in line 7`}, true},
		{"goto nowhere", steps("    - {id: aa, exit: x}\n    - {goto: {step: ab}}\n"), []string{`8:21: unknown step "ab", did you mean "aa"?`}, true},
		{"loop without a wait", steps("    - {id: a, send: {email: hello}}\n    - {goto: {step: a, atMost: 3}}\n"), []string{`7:7: the steps a, 1 go round without a wait: put one into the loop`}, true},
		{"loop that may spin", steps("    - {id: a, wait: {until: {days: [mon]}}}\n    - {goto: {step: a}}\n"), []string{`7:7: the steps a, 1 may go round without end, since their waits may be over at once: give the goto an atMost, or the loop a wait for a length of time`}, true},
		{"event without a timeout", steps("    - {wait: {event: email.clicked}}\n"), []string{`7:14: "timeout" is missing`}, false},
		{"then on a plain wait", steps("    - {wait: 3d, then: [{exit: x}]}\n"), []string{`7:18: this wait has one way out: "then" is for a wait for an event or a match`}, true},
		{"of a step that sends nothing", steps("    - {id: a, tag: {add: [x]}}\n    - {wait: {event: email.opened, of: a, timeout: 1d}}\n"), []string{`8:40: the step "a" sends no mail`}, true},
		{"of an unknown step", steps("    - {id: first, send: {email: hello}}\n    - {wait: {event: email.opened, of: frist, timeout: 1d}}\n"), []string{`8:40: unknown step or email "frist", did you mean "first"?`}, true},
		{"until a field that is no date", steps("    - {wait: {until: {field: plan, offset: -3d}}}\n"), []string{`7:30: the field "plan" is a select: it must be a date or a datetime`}, true},
		{"update of a wrong value", steps("    - {update: {plan: gold, likes: ski, level: null}}\n"), []string{`7:23: unknown option "gold": it is one of free, paid of the field "plan"`, `7:36: the field "likes" is a multiselect: it takes a list`}, true},
		{"update of what is unique", steps("    - {update: {code: x}}\n    - {update: {code: null}}\n") + "---\n" + head("Field", "code", "  {type: text, unique: true}\n"), []string{`7:23: the field "code" is unique: a step cannot give all the same value`}, true},
		{"update of what would not be stored", steps("    - {update: {ends: today, country: NOR, level: many}}\n    - {update: {ends: -30d, country: no, plan: Free, likes: [Ski]}}\n"), []string{
			`7:23: the field "ends" must be a date such as 2026-11-24, not "today"`, `7:39: the field "country" must be a country's code of two letters such as NO (ISO 3166-1), not "NOR"`,
			`7:51: the field "level" must be a number such as 12 or 12.5, not "many"`,
			`8:23: the field "ends" must be a date such as 2026-11-24, not "-30d"`, `8:48: unknown option "Free", did you mean "free"? of the field "plan"`, `8:62: unknown option "Ski", did you mean "ski"? of the field "likes"`,
		}, true},
		{"a stage of none", steps("    - {stage: hot}\n"), []string{`7:15: there are no stages: list them in the Settings, such as stages: [hot]`}, true},
		{"a stage that is not listed", steps("    - {stage: hto}\n") + "---\n" + head("Settings", "settings", "  stages: [hot, won]\n"), []string{`7:15: unknown stage "hto", did you mean "hot"?, as the Settings have them`}, true},
		{"a stage that is no name", steps("    - {stage: Hot}\n"), []string{`7:15: must be a stage such as customer, not "Hot"`}, false},
		{"points", steps("    - {score: {add: 0}}\n    - {score: {add: 1.5, group: Fit}}\n    - {score: 10}\n"), []string{
			`7:21: must be points such as 10 or -5, at most 1000000, not 0`, `8:21: must be points such as 10 or -5, at most 1000000, not 1.5`,
			`8:33: must be a group of small letters, digits and _, not "Fit"`, `9:15: must be an object, not 10`,
		}, false},
		{"update of a score", steps("    - {update: {score: 10}}\n"), []string{`7:17: the field "score" cannot be updated by a step`}, true},
		{"score of no group", where("{field: scores.fit, gte: 1}"), []string{`5:18: unknown field "scores.fit": it is one of country, created, email, ends, external_id, level, likes, plan, score, tags`}, true},
		{"score as a text", where("{field: score.fit, contains: 1}"), []string{`5:29: contains does not fit the field "score.fit", a number: use one of is, isNot, in, notIn, gt, gte, lt, lte, between, exists`}, true},
		{"update of a column", steps("    - {update: {email: x}}\n"), []string{`7:17: the field "email" cannot be updated by a step`}, true},
		{"mail of another topic", head("Campaign", "c", "  topic: news\n  enter: {segment: vips}\n  steps: [{send: {email: tip}}]\n"), []string{`7:26: the email "tip" is of the topic "tips", the campaign of "news": leave the campaign's topic out to mix them`}, true},
		{"unknown zone", head("Campaign", "c", "  enter: {segment: vips}\n  zone: Europe/Pariis\n  steps: [{exit: x}]\n"), []string{`6:9: unknown time zone "Europe/Pariis": it must be one such as Europe/Paris`}, true},
		{"next window without one", head("Campaign", "c", "  enter: {segment: vips}\n  late: {after: 1h, do: nextWindow}\n  steps: [{exit: x}]\n"), []string{`6:21: nextWindow needs a sendWindow`}, true},
		{"window of no length", head("Campaign", "c", "  enter: {segment: vips}\n  sendWindow: {from: \"08:00\", to: \"08:00\"}\n  steps: [{exit: x}]\n"), []string{`6:31: from and to are the same: leave both out for the whole day`}, true},
		{"no steps", head("Campaign", "c", "  enter: {segment: vips}\n  steps: []\n"), []string{`6:10: the list must not be empty`}, false},

		{"topic and transactional", head("Email", "e", "  {topic: news, transactional: true, from: a@x.example, subject: s, html: h}\n"), []string{`5:17: there is "topic" already: only one of topic, transactional may be given`}, false},
		{"neither", head("Email", "e", "  {from: a@x.example, subject: s, html: h}\n"), []string{`5:3: one of topic, transactional is missing`}, false},
		{"no body", head("Email", "e", "  {transactional: true, from: a@x.example, subject: s}\n"), []string{`5:3: one of html, markdown, mjml is missing`}, false},
		{"from", head("Email", "e", "  {transactional: true, from: \"<a@x.example\", subject: s, html: h}\n"), []string{`5:31: not a mail address: "<a@x.example": write it as hello@example.com or "Name <hello@example.com>"`}, true},
		{"unknown name in a subject", head("Email", "e", "  transactional: true\n  from: a@x.example\n  subject: \"Hi {{ contact.contry }}\"\n  html: h\n"), []string{`7:19: unknown field "contact.contry", did you mean "contact.country"?`}, true},
		{"broken Liquid in a block", head("Email", "e", "  transactional: true\n  from: a@x.example\n  subject: s\n  html: |\n    <p>\n      {{ contact.country | upcas }}\n"), []string{`10:28: unknown filter "upcas", did you mean "upcase"?`}, true},
		{"no way to unsubscribe", head("Email", "e", "  {topic: news, from: a@x.example, subject: s, html: h}\n"), []string{`5:54: a mail with a topic needs {{ unsubscribe_url }} in it, or in its layout`}, true},
		{"confirm_url elsewhere", head("Email", "e", "  {transactional: true, from: a@x.example, subject: s, html: \"{{ confirm_url }}\"}\n"), []string{`5:66: confirm_url is known only in an email that a form's confirm names`}, true},
		{"script", head("Email", "e", "  transactional: true\n  from: a@x.example\n  subject: s\n  html: |\n    <script>x</script>\n"), []string{`9:5: a mail has no scripts: leave <script> out`}, true},
		{"no layout", head("Layout", "l", "  {text: \"{{ content }}\"}\n"), []string{`5:3: one of html, mjml is missing`}, false},
		{"mjml", head("Email", "e", "  transactional: true\n  from: a@x.example\n  subject: s\n  mjml: <mjml>{{ x }}<script></mjml>\n  locales: {fr: {html: a, mjml: b}}\n"), []string{
			`8:18: unknown name "x"`, `8:22: a mail has no scripts: leave <script> out`, `9:27: there is "html" already: only one of html, markdown, mjml may be given`,
		}, false},
		{"no attachments", head("Email", "e", "  {transactional: true, from: a@x.example, subject: s, html: h, attachments: []}\n"), []string{`5:78: the list must not be empty`}, false},
		{"attachments", head("Email", "e", "  transactional: true\n  from: a@x.example\n  subject: s\n  html: h\n  attachments:\n    - {file: away.pdf}\n"), []string{`10:14: there is no file "away.pdf" beside the document`}, true},
		{"attachments' keys", head("Email", "e", "  transactional: true\n  from: a@x.example\n  subject: s\n  html: h\n  attachments:\n    - {name: a/b, contentType: PDF, inline: 1}\n"), []string{
			`10:7: "file" is missing`, `10:14: must be a file's name of at most 100 characters, not "a/b"`, `10:32: must be a MIME type such as application/pdf, not "PDF"`, `10:45: must be true or false, not 1`,
		}, false},
		{"variants", head("Email", "e", "  transactional: true\n  from: a@x.example\n  subject: s\n  html: h\n  variants:\n    - {name: a, subject: \"{{ contact.contry }}\"}\n    - {name: a, weight: 1, locales: {fr: {html: \"{{ x }}\"}}}\n"), []string{
			`10:30: unknown field "contact.contry", did you mean "contact.country"?`, `11:14: there is a variant "a" already`, `11:53: unknown name "x"`,
		}, true},
		{"variants' keys", head("Email", "e", "  {transactional: true, from: a@x.example, subject: s, html: h, variants: [{weight: 0, html: x, markdown: y}]}\n"), []string{
			`5:76: "name" is missing`, `5:85: must be a whole number from 1 to 1000, not 0`, `5:97: there is "html" already: only one of html, markdown, mjml may be given`,
		}, false},
		{"utm with Liquid", head("Email", "e", "  {transactional: true, from: a@x.example, subject: s, html: h, utm: {campaign: \"{{ contact.id }}\", sauce: x}}\n"), []string{`5:81: must be one line of text without Liquid, not "{{ contact.id }}"`, `5:101: unknown key "sauce", did you mean "source"?`}, false},
		{"no such file", head("Email", "e", "  {transactional: true, from: a@x.example, subject: s, html: {file: x.html}}\n"), []string{`5:69: there is no file "x.html" beside the document`}, true},
		{"file outside", head("Email", "e", "  {transactional: true, from: a@x.example, subject: s, html: {file: ../x.html}}\n"), []string{`5:69: must be the name of a file beside the document, not "../x.html"`}, false},
		{"layout without content", head("Layout", "l", "  html: <p></p>\n"), []string{`5:9: a layout has {{ content }} in it exactly once: the email goes there`}, true},
		{"locale", head("Email", "e", "  {transactional: true, from: a@x.example, subject: s, html: h, locales: {french: {subject: x}}}\n"), []string{`5:75: unknown language "french": it must be one such as fr or pt-BR`}, false},

		{"broadcast of a transactional mail", head("Broadcast", "b", "  {email: confirm, to: {segment: vips}}\n"), []string{`5:11: the email "confirm" is transactional: a broadcast needs one with a topic, which people can leave`}, true},
		{"broadcast without a time of day", head("Broadcast", "b", "  {email: hello, to: {segment: vips}, at: 2026-05-01}\n"), []string{`5:43: the time of day is missing: write it as 2026-05-01T09:00`}, true},

		{"select without options", head("Field", "f", "  {type: select}\n"), []string{`5:3: "options" is missing: a select needs them`}, false},
		{"options of a text", head("Field", "f", "  {type: text, options: [a]}\n"), []string{`5:16: a text has no options`}, false},
		{"name of a column", head("Field", "email", "  {type: text}\n"), []string{`5:3: the name "email" is taken: every contact has it, or templates do`}, true},

		{"form without email", form("  inputs: [{field: country}]\n  result: {message: ok}\n"), []string{`6:11: an input for the field email is missing: {field: email, required: true}`}, true},
		{"consent without a label", form("  inputs: [{field: email}, {consent: news}]\n  result: {message: ok}\n"), []string{`6:28: "label" is missing: the text that is shown is the proof of consent`}, false},
		{"double opt-in without confirm", form("  inputs: [{field: email}, {consent: tips, label: ok}]\n  result: {message: ok}\n"), []string{`6:28: the topic "tips" has double opt-in: the form needs a confirm with an email`}, true},
		{"field that visitors may not write", form("  inputs: [{field: email}, {field: plan, label: ok}]\n  result: {message: ok}\n"), []string{`6:36: the field "plan" is not visitorWritable: a form cannot ask for it`}, true},
		{"showIf of what is asked later", form("  inputs: [{field: country, showIf: {field: email, exists: true}}, {field: email, showIf: {any: [{field: country, is: NO}, {tag: vip}]}}]\n  result: {message: ok}\n"), []string{
			`6:37: showIf can only ask about fields that the form asks for before this input`, `6:91: showIf can only ask about fields that the form asks for before this input`,
		}, true},
		{"link to no form", head("Email", "x", "  {transactional: true, from: a@x.example, subject: x, html: \"{{ form_url.jion }} {{ form_url }}\"}\n"), []string{
			`5:66: unknown form "jion", did you mean "join"?`, `5:86: say which form's: form_url.NAME`,
		}, true},
		{"file of any type", form("  inputs: [{field: email}, {name: cv, type: file, label: ok}]\n  result: {message: ok}\n"), []string{
			`6:28: "accept" is missing: say which types of files are taken, such as [application/pdf, "image/*"]`,
		}, true},
		{"file that runs", form("  inputs: [{field: email}, {name: cv, type: file, accept: [text/html, application/pfd], label: ok}]\n  result: {message: ok}\n"), []string{
			`6:60: unknown value "text/html", did you mean "text/rtf"?`, `6:71: unknown value "application/pfd", did you mean "application/pdf"?`,
		}, false},
		{"files that are too large", form("  inputs: [{field: email}, {name: cv, type: file, accept: [application/pdf], maxSize: 11MB, label: ok}]\n  result: {message: ok}\n"), []string{
			`6:87: must be a size such as 500KB or 5MB, of at most 10MB, not "11MB"`,
		}, false},
		{"files that are too large together", form("  inputs: [{field: email}, {name: a, type: file, accept: [application/pdf], maxSize: 1KB, label: ok}, {name: b, type: file, accept: [application/pdf], maxFiles: 2, label: ok}]\n  result: {message: ok}\n"), []string{
			`6:11: the files of a form may have 10 MB together, and these 11 MB: lower maxSize (5MB unless given) or maxFiles`,
		}, true},
		{"what is no file", form("  inputs: [{field: email}, {name: a, accept: [application/pdf], label: ok}, {name: b, type: file, accept: [application/pdf], maxLength: 3, options: [x], label: ok}]\n  result: {message: ok}\n"), []string{
			`6:38: accept is for type file`, `6:126: a file has no maxLength: say how large it may be with maxSize`, `6:140: options are for type select or radio`,
		}, true},
		{"text that is not there", form("  inputs: [{field: email, label: emial}]\n  result: {message: ok}\n"), []string{`6:34: unknown text "emial", did you mean "email"?`}, true},
		{"text missing in a language", head("Form", "f", "  locales: {default: en, texts: {en: {title: t, submit: s, email: e}, fr: {title: t, submit: s}}}\n  inputs: [{field: email}]\n  result: {redirect: \"https://x.example/\"}\n"), []string{`5:75: the text "email" is missing in fr`}, true},
		{"a copy by a mail that cannot", head("Settings", "settings", "  privacy: {copy: hello}\n"), []string{
			`5:19: the email "hello" has no {{ data.url }} in it: nobody could get the copy`, `5:19: the email "hello" must be transactional: who asks for a copy gets it without having consented to mails`,
		}, true},
		{"a copy by no mail", head("Settings", "settings", "  privacy: {copy: helo}\n"), []string{`5:19: unknown email "helo", did you mean "hello"?`}, true},
		{"privacy without a copy", head("Settings", "settings", "  privacy: {}\n"), []string{`5:12: "copy" is missing`}, false},
		{"confirm by a mail that cannot", form("  inputs: [{field: email}]\n  confirm: {email: hello}\n  result: {message: ok}\n"), []string{
			`7:20: the email "hello" has no {{ confirm_url }} in it: nobody could confirm`, `7:20: the email "hello" must be transactional: nobody has consented before it is confirmed`,
		}, true},
		{"a send in a form", form("  inputs: [{field: email}]\n  submitted: [{send: {email: hello}}]\n  result: {message: ok}\n"), []string{`7:16: this version does not have the action "send" yet`}, false},
		{"rate", form("  inputs: [{field: email}]\n  protect: {perAddress: 3/hour}\n  result: {message: ok}\n"), []string{`7:25: must be a rate such as 3/h, not "3/hour"`}, false},

		{"settings", head("Settings", "s", "  zone: Mars/Base\n  tracking: some\n  frequency: {count: 0, per: 0d}\n"), []string{
			`5:9: unknown time zone "Mars/Base": it must be one such as Europe/Paris`,
			`6:13: unknown value "some", did you mean "none"?`,
			`7:22: must be a whole number from 1 to 1000, not 0`,
			`7:30: the duration must be longer than 0d, such as 1h or 1d`,
		}, false},
		{"pace", head("Settings", "s", "  pace: {rate: fast, domains: {gmail.com: 0/s}}\n  duplicates: 0m\n"), []string{
			`5:16: must be a rate such as 3/h, not "fast"`,
			`5:43: must be a rate such as 3/h, not "0/s"`,
			`6:15: the duration must be longer than 0m, such as 1h or 1d`,
		}, false},
		{"connections", head("Settings", "s", "  pace: {domains: {gmail.com: {rate: 5, connections: 0}}}\n"), []string{
			`5:38: must be a rate such as 3/h, not 5`,
			`5:54: must be a whole number from 1 to 1000, not 0`,
		}, false},
		{"pace of nobody", head("Settings", "s", "  pace: {domains: {gogle: 5/s}}\n"), []string{
			`5:20: not where mail goes: "gogle": write a domain in lower case such as gmail.com (xn-- for other alphabets), or a provider such as google`,
		}, true},
		{"site", head("Settings", "s", "  web: {origins: [\"http://a.example\", \"https://a.example/\", \"https://a.example:0\", a.example]}\n"), []string{
			`5:19: must be an origin such as https://example.com, or http://localhost:8000 on your own machine, not "http://a.example"`,
			`5:39: must be an origin such as https://example.com, or http://localhost:8000 on your own machine, not "https://a.example/"`,
			`5:61: must be an origin such as https://example.com, or http://localhost:8000 on your own machine, not "https://a.example:0"`,
			`5:84: must be an origin such as https://example.com, or http://localhost:8000 on your own machine, not "a.example"`,
		}, false},
		{"site without origins", head("Settings", "s", "  web: {}\n"), []string{`5:8: "origins" is missing`}, false},
		{"duplicates for too long", head("Settings", "s", "  duplicates: 61d\n"), []string{`5:15: what was sent is remembered for at most 60 days`}, true},
		{"theme", head("Settings", "s", "  theme: {accent: \"#ffcc00\", corners: rounded, font: Arial, logo: https://x.example/logo.png}\n"), []string{
			`5:19: white on #ffcc00, and #ffcc00 on white, has a contrast of 1.5:1, and text needs 4.5:1 to be read by everybody: write a darker one, such as "#8f7200"`,
			`5:39: unknown value "rounded", did you mean "round"?`,
			`5:54: unknown value "Arial": it is one of sans, serif`,
			`5:67: must be {file: name}, of an SVG, PNG, JPEG, GIF or WebP, not "https://x.example/logo.png"`,
		}, false},
		{"scores", head("Settings", "s", "  scores:\n    - {event: email.clicked}\n    - {event: email.sent, add: 5}\n    - {event: order.placed, of: x, add: 2000000}\n    - {event: a.b, within: 3d, add: 1}\n"), []string{
			`6:7: "add" is missing`,
			`7:15: unknown event "email.sent", did you mean "email.opened"?`,
			`8:33: the event "order.placed" has no of: use where, for its properties`,
			`8:41: must be points such as 10 or -5, at most 1000000, not 2000000`,
			`9:20: unknown key "within": it is one of event, of, where, add, group`,
		}, false},
		{"name of a score", head("Field", "score", "  {type: number}\n"), []string{`5:3: the name "score" is taken: every contact has it, or templates do`}, true},
		{"score of a group in a mail", head("Email", "e", "  transactional: true\n  from: a@x.example\n  subject: s\n  html: \"{{ contact.score }} {{ contact.score.fit }}\"\n"), []string{`8:33: contact.score.fit: of scores templates know contact.score alone`}, true},
		{"logo without a title", head("Settings", "s", "  theme: {logo: \"data:image/png;base64,AAAA\"}\n"), []string{`5:10: with a logo the settings need a title in their metadata, for who does not see it`}, true},
		{"spread over too long", head("Broadcast", "b", "  email: hello\n  to: {segment: vips}\n  over: 15d\n"), []string{`7:9: a broadcast is spread over at most 14 days`}, true},
		{"warm-up with a hole", warmup(`{days: 1-3, mails: 100}, {days: 6, mails: 500}`), []string{`7:62: days 4 to 5 are missing before day 6: a warm-up has every day from 1 to its last`}, true},
		{"warm-up with a small hole", warmup(`{days: 1, mails: 100}, {days: 3-4, mails: 500}`), []string{`7:60: day 2 is missing before day 3: a warm-up has every day from 1 to its last`}, true},
		{"warm-up that begins late", warmup(`{days: 2, mails: 100}`), []string{`7:37: day 1 is missing before day 2: a warm-up has every day from 1 to its last`}, true},
		{"warm-up with a day twice", warmup(`{days: 1-3, mails: 100}, {days: 3-4, mails: 500}`), []string{`7:62: day 3 is there twice: the days before end with day 3`}, true},
		{"warm-up backwards", warmup(`{days: 3-1, mails: 100}`), []string{`7:44: not days: "3-1": write 4, or 1-3`}, true},
		{"warm-up of nothing", warmup(`{days: 1, mails: 0}`), []string{`7:54: must be a whole number from 1 to 100000000, not 0`}, false},
		{"warm-up that begins at an hour", strings.Replace(warmup(`{days: 1, mails: 5}`), "2026-12-01", "2026-12-01T09:00", 1), []string{`7:18: a warm-up begins with a day: write it as 2026-06-30`}, true},
	}
}

func warmup(days string) string {
	return head("Domain", "s", "  domain: a.example\n  signer: onda\n  warmup: {from: 2026-12-01, days: ["+days+"]}\n")
}

func form(s string) string {
	return head("Form", "f", "  locales: {default: en, texts: {en: {title: t, submit: s, email: e, ok: o, country: c}}}\n"+s)
}

func TestProblems(t *testing.T) {
	t.Parallel()
	validator := compileSchema(t)
	for _, tt := range badCases() {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := LoadChecked(fstest.MapFS{"company.yaml": {Data: []byte(company)}, "x.yaml": {Data: []byte(tt.doc)}}, nil, plainly)
			got := strings.Split(strings.ReplaceAll(errText(err), "x.yaml:", ""), "\n")
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("problems (-want +got):\n%s\nof\n%s", diff, tt.doc)
			}
			if valid := schemaAccepts(t, validator, tt.doc); valid != tt.blind {
				t.Errorf("the JSON Schema says valid = %v, want %v, of\n%s", valid, tt.blind, tt.doc)
			}
		})
	}
}

// A window that looks back to what is forgotten is no error: what there is counts.
func TestWarningsOfWindows(t *testing.T) {
	t.Parallel()
	const segment = "apiVersion: onda/v1\nkind: Segment\nmetadata: {name: s}\nspec: {where: {event: %s, within: %s}}\n"
	for _, tt := range []struct{ settings, event, within, want string }{
		{"{}", "order.placed", "24mo", ""},
		{"{}", "order.placed", "25mo", "x.yaml:4:45: 25mo is longer than what happens is kept: retention.facts of Settings says 2y, and what is older does not count"},
		{"{retention: {facts: 30d}}", "email.clicked", "31d", "x.yaml:4:46: 31d is longer than what happens is kept: retention.facts of Settings says 4w2d, and what is older does not count"},
		{"{retention: {facts: 30d}}", "email.sent", "31d", ""},
		{"{retention: {deliveries: 30d}}", "email.sent", "31d", "x.yaml:4:43: 31d is longer than what happens is kept: retention.deliveries of Settings says 4w2d, and what is older does not count"},
	} {
		set, err := LoadChecked(fstest.MapFS{
			"settings.yaml": {Data: []byte("apiVersion: onda/v1\nkind: Settings\nmetadata: {name: settings}\nspec: " + tt.settings + "\n")},
			"x.yaml":        {Data: fmt.Appendf(nil, segment, tt.event, tt.within)},
		}, nil, plainly)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, w := range set.Warnings {
			got += w.Error()
		}
		if got != tt.want {
			t.Errorf("%s within %s: %q, want %q", tt.event, tt.within, got, tt.want)
		}
	}
}

func errText(err error) string {
	if err == nil {
		return "no problem"
	}
	return err.Error()
}

func compileSchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(string(JSONSchema())))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("onda.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("onda.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// schemaAccepts validates every document of a YAML file; what is not readable is for the decoders alone.
func schemaAccepts(t *testing.T, s *jsonschema.Schema, src string) bool {
	t.Helper()
	docs, problems := parseYAML("x.yaml", []byte(src))
	if len(problems) > 0 {
		return true
	}
	for _, n := range docs {
		v, err := jsonschema.UnmarshalJSON(strings.NewReader(string(n.appendJSON(nil))))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Validate(v); err != nil {
			return false
		}
	}
	return true
}

// goodDocs are documents without a problem; together they use every key.
func goodDocs() []string {
	return []string{
		company,
		head("Campaign", "c", `  topic: news
  enter: [{segment: vips}, {event: trial.started, key: trial_id, where: {plan: pro}}]
  exclude: {not: {tag: a}}
  reentry: {after: 90d}
  goal: {field: plan, is: paid}
  leave: {not: {segment: vips}}
  zone: Europe/Paris
  sendWindow: {days: [mon, fri], from: "20:00", to: "08:00"}
  late: {after: 12h, do: nextWindow}
  steps:
    - {id: hello, send: {email: hello}}
    - wait: {event: email.clicked, of: hello, where: {url: {startsWith: "https://"}}, timeout: 3d, untracked: then}
      then: [{tag: {add: [a], remove: [b]}}]
      else: []
    - wait: 1d12h
    - wait: {until: 2026-12-24}
    - wait: {until: 2026-12-24T09:00, past: exit}
    - wait: {until: {days: [tue], from: "09:00", to: "24:00"}}
    - wait: {until: {field: ends, offset: -3d, at: "09:00"}, missing: exit, past: continue}
    - if: {all: [{field: country, in: ["NO", FR]}, {field: level, gte: 50}]}
      then: [{update: {plan: paid, likes: [ski], level: 1.5, ends: null}}, {score: {add: 10}}, {id: cold, score: {add: -5, group: fit}}]
    - wait: {match: {field: level, gte: 5}, timeout: 2d}
      else: [{goto: {step: hello, atMost: 2}}]
    - exit: finished
`),
		where(`
    all:
      - {field: country, notIn: [FR]}
      - {field: level, between: [50, 100]}
      - {field: score, gte: 50}
      - {field: score.fit, between: [-5, 5]}
      - {field: email, endsWith: ".no"}
      - {field: email, matches: "^a.*b$"}
      - {field: email, contains: 7}
      - {field: ends, yearly: {inNext: 7d}}
      - {field: ends, before: today}
      - {field: ends, after: -30d}
      - {field: ends, between: [2026-01-01, 2026-02-01]}
      - {field: created, inLast: 90d}
      - {field: created, olderThan: 1y}
      - {field: likes, hasAny: [ski, sail]}
      - {field: likes, hasNone: [ski]}
      - {field: tags, hasAll: [a, b]}
      - {field: country, exists: false}
      - {topic: news, state: subscribed}
      - {reachable: news}
      - {event: email.clicked, of: hello, within: 30d, count: {gte: 2}}
      - {event: page.viewed, where: {url: {contains: pricing}, n: 3}, count: 0}
      - {event: order.placed, where: {total: {gte: 100}}, between: [2026-01-01, 2026-06-30]}
      - {event: form.submitted, of: join}
      - {event: consent.granted, of: tracking.email}
      - any: [{tag: vip}, {segment: vips}]
      - not: {event: email.clicked, within: 30d}
      - {sample: 12.5, seed: beta}
  keep: {in: [a@x.example], out: []}`),
		head("Segment", "m", "  members: manual\n"),
		head("Field", "l", "  {type: language, unique: false, personal: true, visitorWritable: true}\n"),
		head("Settings", "settings", "  {zone: Europe/Oslo, locale: pt-BR, tracking: none, frequency: [{count: 3, per: 7d}], quietHours: {from: \"21:00\", to: \"07:00\"}, retention: {facts: 1y}, pace: {rate: 50/s, domains: {google: 1000/m, mail.x.example: {rate: 10/15m, connections: 4}, y.example: {connections: 1}}}, duplicates: 24h, theme: {accent: \"#0B5E6B\", corners: square, font: serif}, scores: [{event: email.clicked, of: hello, add: 5}, {event: page.viewed, where: {url: {startsWith: \"https://\"}}, add: -2, group: fit}, {event: order.placed, add: 20}], web: {origins: [\"https://X.example:443\", \"http://localhost:8000\"]}, stages: [hot, won-back]}\n"),
		head("Domain", "own", "  {domain: News.Bücher.example, signer: onda, returnPath: bounce.bücher.example, linkHost: l.x.example, spf: [\"include:_spf.x.example\", \"ip4:192.0.2.0/24\", \"ip6:2001:db8::/32\"], warmup: {from: 2026-12-01, days: [{days: 1-2, mails: 500}, {days: 3, mails: 1000}]}}\n"),
		head("Domain", "relayed", "  {domain: x.example, dkim: {selectors: [s1, s2.key]}, spf: \"a:out.x.example\"}\n"),
		head("Broadcast", "b", "  {email: hello, to: {segment: vips}, exclude: {tag: a}, at: 2026-05-01T09:00, zone: contact, over: 4h}\n"),
		head("Layout", "lay", "  {html: \"<p>{{ content }}</p>\", text: \"{{ content }} {{ unsubscribe_url }}\"}\n"),
		head("Email", "full", "  {topic: news, from: \"N <a@x.example>\", replyTo: b@x.example, layout: lay, unknown: resend, utm: {source: s, campaign: \"Spring & sea\"}, subject: \"{{ topic.title }}\", preheader: p, markdown: \"[u]({{ unsubscribe_url }})\", text: t, locales: {fr: {subject: x}, pt-BR: {html: \"{{ unsubscribe_url }}\"}}, variants: [{name: a}, {name: b, weight: 3, subject: \"x {{ contact.country }}\", locales: {fr: {preheader: y}}}]}\n"),
		form(`  inputs:
    - {field: email, required: true, as: email, label: email, help: ok}
    - {field: country, as: select, hideWhenKnown: true, showIf: {not: {field: email, endsWith: .no}}}
    - {name: size, type: radio, options: [s, m], label: ok}
    - {name: msg, type: textarea, maxLength: 10, label: ok, keep: 90d}
    - {name: cv, type: file, accept: [application/pdf, "image/*"], label: ok, required: true, keep: 90d, showIf: {field: country, is: NO}}
    - {name: pictures, type: file, accept: [image/png], maxFiles: 3, maxSize: 900KB, label: ok}
    - {consent: tracking.web, label: ok, required: false}
    - {consent: tips, label: ok}
    - {hidden: utm, from: query, keep: 1d12h}
  protect: {honeypot: false, perAddress: 10/15m, blockDomains: [x.example]}
  confirm: {email: confirm, expires: 7d}
  submitted: [{tag: {add: [web]}}, {update: {plan: free}}]
  confirmed: [{campaign: {enter: c}}, {score: {add: 5}}, {stage: hot}]
  result: {redirect: "https://x.example/"}
  origins: ["https://x.example:8443"]
  keep: 365d
`),
	}
}

func TestGoodDocuments(t *testing.T) {
	t.Parallel()
	validator := compileSchema(t)
	fsys := fstest.MapFS{}
	for i, src := range goodDocs() {
		fsys[string(rune('a'+i))+".yaml"] = &fstest.MapFile{Data: []byte(src)}
		docs, _ := parseYAML("", []byte(src))
		for _, n := range docs {
			v, err := jsonschema.UnmarshalJSON(strings.NewReader(string(n.appendJSON(nil))))
			if err != nil {
				t.Fatal(err)
			}
			if err := validator.Validate(v); err != nil {
				t.Errorf("the JSON Schema refuses a good document: %v\n%s", err, src)
			}
		}
	}
	set, err := LoadChecked(fsys, nil, plainly)
	if err != nil {
		t.Fatal(err)
	}
	for _, doc := range set.Documents {
		got, err := Decode(doc.Kind, doc.JSON)
		if err != nil {
			t.Errorf("%s %s: %v", doc.Kind, doc.Name, err)
			continue
		}
		if diff := cmp.Diff(doc.Doc, got, compare()...); diff != "" {
			t.Errorf("Decode gives another %s %s (-loaded +decoded):\n%s", doc.Kind, doc.Name, diff)
		}
		var indented any
		if err := json.Unmarshal(doc.JSON, &indented); err != nil {
			t.Errorf("%s %s is not JSON: %v", doc.Kind, doc.Name, err)
		}
	}
	// what is stored is known: the same documents checked against themselves
	if problems := set.Check(set, plainly); len(problems) > 0 {
		t.Errorf("against itself: %v", problems)
	}
}

func TestExamplesHaveEachKind(t *testing.T) {
	t.Parallel()
	set, err := Load(os.DirFS("../../examples/company"))
	if err != nil {
		t.Fatal(err)
	}
	domains, err := LoadChecked(os.DirFS("../../examples/domain"), nil, plainly) // apart, since a Domain binds all emails
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range Kinds() {
		if len(set.Names(kind))+len(domains.Names(kind)) == 0 {
			t.Errorf("the examples have no %s", kind)
		}
	}
}

func TestASCIIDomain(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"Example.COM": "example.com", "Bücher.example": "xn--bcher-kva.example", "例え.テスト": "xn--r8jz45g.xn--zckzah", "a.b-c.example": "a.b-c.example",
		"": "", "x..example": "", "a b.example": "", "-x.example": "", "a_b.example": "", strings.Repeat("a.", 130) + "example": "", "xn--a.example": "",
	} {
		if got, err := ASCIIDomain(in); got != want || (err == nil) != (want != "") {
			t.Errorf("ASCIIDomain(%q) = %q, %v, want %q", in, got, err, want)
		}
	}
}

// The examples must pass the JSON Schema too, with their files still named.
func TestExamplesPassTheSchema(t *testing.T) {
	t.Parallel()
	validator := compileSchema(t)
	set, err := Load(os.DirFS("../../examples/company"))
	if err != nil {
		t.Fatal(err)
	}
	for _, doc := range set.Documents {
		v, err := jsonschema.UnmarshalJSON(strings.NewReader(string(doc.JSON)))
		if err != nil {
			t.Fatal(err)
		}
		if err := validator.Validate(v); err != nil {
			t.Errorf("%s: %v", doc.File, err)
		}
	}
}
