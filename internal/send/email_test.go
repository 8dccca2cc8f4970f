package send

import (
	"encoding/base64"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/apply"
	"github.com/onda-run/onda/internal/pgtest"
)

// renew gives the news other texts, and files.
func (w *world) renew(spec string, files map[string]string) {
	w.t.Helper()
	fsys := fstest.MapFS{"news.yaml": {Data: []byte("apiVersion: onda/v1\nkind: Email\nmetadata: {name: news}\nspec:\n  topic: newsletter\n  from: news@acme.example\n  subject: News\n" + spec)}}
	for name, content := range files {
		fsys[name] = &fstest.MapFile{Data: []byte(content)}
	}
	if _, _, err := apply.Directory(w.t.Context(), w.db, pgtest.Acme, fsys, nil); err != nil {
		w.t.Fatal(err)
	}
	w.news = pgtest.One[int64](w.t, w.db, pgtest.Acme, "SELECT current FROM entity WHERE kind = 'Email' AND name = 'news'")
}

// A template that grows to 30 MB for one recipient fails that mail, with its reason. The others of its batch are sent.
func TestATemplateThatGrowsFailsItsOwnMail(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.renew(`  html: '<p>{% for i in (1..9000) %}{{ contact.first_name }}{% endfor %} <a href="{{ unsubscribe_url }}">leave</a></p>'`+"\n", nil)
	people := w.people(3)
	pgtest.Exec(t, w.db, pgtest.Acme, "UPDATE contact SET fields = jsonb_build_object('first_name', repeat('x', 3400)) WHERE id = $1", people[1])
	w.plan(people, 500)
	w.mustSweep(w.start(), "send")
	if diff := cmp.Diff(map[string]string{"u1@x.example": "sent 250", "u2@x.example": "failed policy", "u3@x.example": "sent 250"}, w.outcomes()); diff != "" {
		t.Errorf("outcomes (-want +got):\n%s", diff)
	}
	detail := pgtest.One[string](t, w.db, pgtest.Acme, "SELECT detail FROM delivery WHERE state = 'failed'")
	if want := "the mail cannot be made: html: rendering: the output is larger than 4 MiB"; detail != want {
		t.Errorf("it failed because %q, want %q", detail, want)
	}
	if len(w.smtp.MailsTo("u1@x.example")) != 1 || len(w.smtp.Mails()) != 2 {
		t.Errorf("%d mails", len(w.smtp.Mails()))
	}
}

// An email's files, and a link of 8 KB that its reader is sent to straight, arrive with every mail of a batch.
func TestAttachmentsAndLongLinksArrive(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	link, file := "https://acme.example/"+strings.Repeat("long-", 1600), strings.Repeat("terms of use ", 20_000)
	w.renew(`  html: '<p><a href="`+link+`" data-onda-track="off">read</a> <a href="{{ unsubscribe_url }}">leave</a></p>'`+"\n  attachments: [{file: terms.txt}]\n", map[string]string{"terms.txt": file})
	w.plan(w.people(40), 500)
	w.mustSweep(w.start(), "send")
	encoded := base64.StdEncoding.EncodeToString([]byte(file))
	for _, m := range w.smtp.Mails() {
		body := string(m.Body)
		if !strings.Contains(strings.ReplaceAll(body, "\r\n", ""), encoded) || !strings.Contains(body, `filename="terms.txt"`) {
			t.Fatalf("no file in\n%.2000s", body)
		}
		if !strings.Contains(strings.ReplaceAll(body, "=\r\n", ""), `href=3D"`+link+`"`) {
			t.Fatalf("no link in\n%.2000s", body)
		}
	}
	if n := len(w.smtp.Mails()); n != 40 {
		t.Errorf("%d mails", n)
	}
}
