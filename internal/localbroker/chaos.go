package localbroker

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"time"
)

// Chaos is how badly the broker behaves. Each share is a probability from 0 to 1 that is drawn for each event of each trigger, from a sequence that Seed and
// the trigger's name fix: the same events in the same order meet the same fate.
type Chaos struct {
	// Drop is the share that is lost without a trace.
	Drop float64
	// Repeat is the share that is delivered once more.
	Repeat float64
	// Reorder is the share that is held until a later event of the same trigger was tried, or for one second where none comes.
	Reorder float64
	// Delay is the share that is held for a while, from DelayMin to DelayMax (0 to 2 s unless they are set).
	Delay              float64
	DelayMin, DelayMax time.Duration
	// Seed starts the sequence.
	Seed uint64
}

// holdAtMost is how long a reordered event waits for one to overtake it.
const holdAtMost = time.Second

// Check refuses what is no probability or no range.
func (c Chaos) Check() error {
	for _, share := range []struct {
		name  string
		value float64
	}{{"drop", c.Drop}, {"repeat", c.Repeat}, {"reorder", c.Reorder}, {"delay", c.Delay}} {
		if !(share.value >= 0 && share.value <= 1) {
			return fmt.Errorf("%s: %v is not a share from 0 to 1", share.name, share.value)
		}
	}
	if c.DelayMin < 0 || c.DelayMax < c.DelayMin {
		return fmt.Errorf("delayMin, delayMax: %s to %s is not a range", c.DelayMin, c.DelayMax)
	}
	return nil
}

// chaosJSON is Chaos as it is written.
type chaosJSON struct {
	Drop     float64 `json:"drop"`
	Repeat   float64 `json:"repeat"`
	Reorder  float64 `json:"reorder"`
	Delay    float64 `json:"delay"`
	DelayMin string  `json:"delayMin,omitempty"`
	DelayMax string  `json:"delayMax,omitempty"`
	Seed     uint64  `json:"seed,omitempty"`
}

// MarshalJSON writes times as "1.5s".
func (c Chaos) MarshalJSON() ([]byte, error) {
	out := chaosJSON{Drop: c.Drop, Repeat: c.Repeat, Reorder: c.Reorder, Delay: c.Delay, Seed: c.Seed}
	if c.DelayMax > 0 {
		out.DelayMin, out.DelayMax = c.DelayMin.String(), c.DelayMax.String()
	}
	return json.Marshal(out)
}

// UnmarshalJSON reads what MarshalJSON writes, refuses unknown keys, and checks.
func (c *Chaos) UnmarshalJSON(text []byte) error {
	var in chaosJSON
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&in); err != nil {
		return err
	}
	out := Chaos{Drop: in.Drop, Repeat: in.Repeat, Reorder: in.Reorder, Delay: in.Delay, Seed: in.Seed}
	for _, limit := range []struct {
		name, text string
		into       *time.Duration
	}{{"delayMin", in.DelayMin, &out.DelayMin}, {"delayMax", in.DelayMax, &out.DelayMax}} {
		if limit.text == "" {
			continue
		}
		d, err := time.ParseDuration(limit.text)
		if err != nil {
			return errors.New(limit.name + `: not a time such as "1.5s"`)
		}
		*limit.into = d
	}
	if err := out.Check(); err != nil {
		return err
	}
	*c = out
	return nil
}

// fate is what becomes of one event at one trigger.
type fate struct {
	drop, repeat, reorder bool
	delay                 time.Duration
}

// dice draws the fates of one trigger's events.
type dice struct {
	chaos Chaos
	rand  *rand.Rand
}

func newDice(c Chaos, trigger string) *dice {
	h := fnv.New64a()
	_, _ = h.Write([]byte(trigger)) // never fails
	if c.DelayMax == 0 {
		c.DelayMax = 2 * time.Second
	}
	return &dice{chaos: c, rand: rand.New(rand.NewPCG(c.Seed, h.Sum64()))}
}

// draw takes the same number of draws whatever they give, so that one share does not shift the others.
func (d *dice) draw() fate {
	f := fate{
		drop:    d.rand.Float64() < d.chaos.Drop,
		repeat:  d.rand.Float64() < d.chaos.Repeat,
		reorder: d.rand.Float64() < d.chaos.Reorder,
	}
	late, share := d.rand.Float64() < d.chaos.Delay, d.rand.Float64()
	if late {
		f.delay = d.chaos.DelayMin + time.Duration(share*float64(d.chaos.DelayMax-d.chaos.DelayMin))
	}
	return f
}
