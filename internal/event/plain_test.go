package event

import (
	"encoding/json"
	"testing"

	"pgregory.net/rapid"
)

// TestPlain holds the short way of encoding against the long one.
func TestPlain(t *testing.T) {
	t.Parallel()
	entry, _ := Lookup(TypeEmailSent)
	rapid.Check(t, func(t *rapid.T) {
		d := Deliveries{Items: rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Delivery {
			return Delivery{
				Delivery: rapid.Int64Range(-1, 1<<62).Draw(t, "delivery"), Contact: rapid.Int64Range(-1, 3).Draw(t, "contact"), Run: rapid.Int64Range(-1, 3).Draw(t, "run"),
				Reason: rapid.SampledFrom([]string{"", "", "", "expired", "550 no"}).Draw(t, "reason"),
			}
		}), 0, 4).Draw(t, "items")}
		want, err := json.Marshal(EmailSent{d})
		if err != nil {
			t.Fatal(err)
		}
		got, ok := d.plain()
		if ok {
			entry.encodes(t, got, want)
		}
	})
	if _, ok := (Deliveries{Items: make([]Delivery, MaxItems+1)}).plain(); ok {
		t.Error("more items than an event may have are encoded")
	}
	if body, ok := (Deliveries{Items: []Delivery{{Delivery: 513, Contact: 7, Run: 2}}}).plain(); !ok || string(body) != `{"items":[{"delivery":513,"contact":7,"run":2}]}` {
		t.Errorf("encoded as %s, %v", body, ok)
	}
}

func TestPlainActivities(t *testing.T) {
	t.Parallel()
	entry, _ := Lookup(TypeEventTracked)
	rapid.Check(t, func(t *rapid.T) {
		a := Activities{Items: rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Activity {
			return Activity{
				Contact: rapid.Int64Range(-1, 3).Draw(t, "contact"),
				Name:    rapid.OneOf(rapid.SampledFrom([]string{"", "Order Placed", "a<b", `a"b`, `a\b`, "é", "a\x7f", "\n"}), rapid.String()).Draw(t, "name"),
			}
		}), 0, 4).Draw(t, "items")}
		want, err := json.Marshal(EventTracked{a})
		if err != nil {
			t.Fatal(err)
		}
		got, ok := a.plain()
		if ok {
			entry.encodes(t, got, want)
		}
	})
	if body, ok := (Activities{Items: []Activity{{Contact: 7, Name: "Order Placed"}, {}}}).plain(); !ok || string(body) != `{"items":[{"contact":7,"name":"Order Placed"},{}]}` {
		t.Errorf("encoded as %s, %v", body, ok)
	}
}

// encodes holds what was encoded by hand to what encoding/json makes of the same, and that to the schema.
func (e Entry) encodes(t *rapid.T, got, want []byte) {
	if string(got) != string(want) {
		t.Fatalf("encoded as %s, want %s", got, want)
	}
	if err := e.check(want); err != nil {
		t.Fatalf("%s is encoded without an error, and breaks the schema: %v", want, err)
	}
}
