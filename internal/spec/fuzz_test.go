package spec

import (
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// Whatever is in a file, reading it ends with documents or problems that have a
// place; and what has no problem is read back from its stored form as the same.
func FuzzLoad(f *testing.F) {
	for _, src := range goodDocs() {
		f.Add(src)
	}
	for _, bad := range badCases() {
		f.Add(bad.doc)
	}
	f.Fuzz(func(t *testing.T, src string) {
		set, err := LoadChecked(fstest.MapFS{"x.yaml": {Data: []byte(src)}}, nil, plainly)
		if err != nil {
			problems, ok := err.(Problems) //nolint:errorlint // LoadChecked gives it bare
			if !ok {
				t.Fatalf("%v", err)
			}
			for _, p := range problems {
				if p.File != "x.yaml" || p.Line < 1 || p.Col < 1 || p.Msg == "" {
					t.Fatalf("a problem without a place: %+v", p)
				}
			}
			return
		}
		for _, doc := range set.Documents {
			got, err := Decode(doc.Kind, doc.JSON)
			if err != nil {
				t.Fatalf("Decode of %s: %v", doc.JSON, err)
			}
			if diff := cmp.Diff(doc.Doc, got, compare()...); diff != "" {
				t.Fatalf("Decode gives another document:\n%s", diff)
			}
		}
	})
}

func FuzzDuration(f *testing.F) {
	for _, s := range []string{"3d", "-1mo", "1y2mo3w4d5h6m", "99999h", "0m", "3 d", "1d-1h"} {
		f.Add(s, int64(1_774_746_000))
	}
	oslo, err := time.LoadLocation("Europe/Oslo")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, s string, unix int64) {
		d, err := ParseOffset(s)
		if err != nil {
			return
		}
		again, err := ParseOffset(d.String())
		if err != nil || again != d {
			t.Fatalf("%q is %v, which reads as %v, %v", s, d, again, err)
		}
		at := time.Unix(unix%4_000_000_000, 0)
		if got := d.AddTo(at, oslo); got.Sub(at).Abs() > 101*366*24*time.Hour {
			t.Fatalf("%v + %q = %v", at, s, got)
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	fsys := fstest.MapFS{}
	for i, src := range goodDocs() {
		fsys[string(rune('a'+i))+".yaml"] = &fstest.MapFile{Data: []byte(src)}
	}
	set, err := Load(fsys)
	if err != nil {
		b.Fatal(err)
	}
	for _, kind := range []string{KindCampaign, KindSegment, KindEmail, KindForm} {
		b.Run(kind, func(b *testing.B) {
			for _, doc := range set.Documents {
				if doc.Kind != kind || doc.Name == "vips" || doc.Name == "m" || doc.Name == "hello" {
					continue
				}
				b.ReportAllocs()
				for b.Loop() {
					if _, err := Decode(kind, doc.JSON); err != nil {
						b.Fatal(err)
					}
				}
				return
			}
		})
	}
}
