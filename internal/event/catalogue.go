package event

import (
	"reflect"
	"sync"
)

// StreamFacts is the value of the extension "stream" of every event that is the doorbell of rows in the table of facts. A consumer of facts
// needs one Trigger for all of them, with an exact filter, which is all that every broker class can do.
const StreamFacts = "facts"

// Entry is one type of event in the catalogue.
type Entry struct {
	// Type is the CloudEvents type.
	Type string
	// Description says in a sentence what the event means.
	Description string
	// Producers are the functions that make it; "onda" is the command line, "any" any program of a tenant's own.
	Producers []string
	// Consumers are the functions that have a Trigger for it, or to which it is posted straight (only schedule.due).
	Consumers []string
	// Direct is set where the event is posted to the consumer's address and passes no broker.
	Direct bool
	// Stream is StreamFacts for the doorbells of facts, else empty.
	Stream string
	// GoType is the type that Decode returns.
	GoType reflect.Type
}

// Catalogue lists every type of event, in the order of the design's table. The slice is the caller's.
func Catalogue() []Entry {
	return []Entry{
		entry[CampaignStarted]("A campaign run has begun.", by("onda", "campaign"), to("campaign")),
		entry[CampaignPaused]("A campaign run is held; its recipients stay queued.", by("onda", "campaign"), nil),
		entry[CampaignResumed]("A paused campaign run goes on.", by("onda", "campaign"), to("campaign")),
		entry[CampaignCancelled]("A campaign run ends early; what is queued will not be sent.", by("onda", "campaign"), to("campaign")),
		entry[CampaignCompleted]("Every recipient of a campaign run has an outcome.", by("campaign"), nil),

		direct(entry[ScheduleDue]("The tenant has work due in this function.", by("schedule"), to("send", "track", "segment", "campaign"))),

		entry[EmailSendRequested]("There are batches of this run to send.", by("campaign", "send"), to("send")),
		entry[EmailRequested]("One transactional mail is to be sent.", by("any", "send"), to("send")),
		entry[EmailBatchSent]("Each recipient of a batch has an outcome.", by("send"), to("campaign")),

		fact[EmailSent]("The next server took the mails.", by("send")),
		fact[EmailDelivered]("The mails reached their mailboxes.", by("bounce")),
		fact[EmailDeferred]("The mails were refused for the moment and will be tried again.", by("send")),
		fact[EmailFailed]("The mails were refused for good.", by("send")),
		fact[EmailBounced]("Mails that had been sent came back.", by("bounce")),
		fact[EmailComplained]("Recipients marked the mails as spam.", by("bounce")),
		fact[EmailSuppressed]("The mails were not to be sent.", by("send")),

		fact[EmailOpened]("The pixels of mails were fetched.", by("track")),
		fact[EmailClicked]("Links in mails were followed.", by("track")),
		fact[HitReclassified]("The verdict on hits that were told before is another.", by("track")),

		fact[ConsentGranted]("Contacts may be mailed or tracked for a purpose.", by("track", "render-form", "onda")),
		fact[ConsentPending]("Contacts have asked to be mailed and not confirmed it yet.", by("render-form", "onda")),
		fact[ConsentWithdrawn]("Contacts withdrew their consent.", by("track", "bounce", "onda")),
		fact[SuppressionAdded]("Addresses get no mail from now on.", by("bounce", "send", "onda")),
		fact[SuppressionRemoved]("Addresses may get mail again.", by("bounce", "onda")),

		fact[PageViewed]("Pages of the customer's site were looked at.", by("track")),
		fact[EventTracked]("Custom events came in.", by("track")),
		fact[ContactIdentified]("Visitors turned out to be contacts.", by("track")),

		fact[FormSubmitted]("Forms were sent in and accepted.", by("render-form")),
		fact[FormRejected]("Forms were sent in and refused.", by("render-form")),
		fact[FormConfirmed]("Opt-ins were confirmed.", by("render-form")),

		fact[ContactChanged]("Contacts were made or their fields changed.", by("onda", "track", "render-form", "campaign")),
		fact[ContactMerged]("Contacts were merged into others.", by("onda")),
		fact[ContactUnmerged]("Merges of contacts were undone.", by("onda")),
		fact[ContactErased]("Contacts were erased.", by("onda", "track", "campaign")),

		entry[SegmentRebuildRequested]("A segment's memberships are to be computed in full.", by("onda"), to("segment")),
		entry[SegmentChanged]("Contacts joined or left a segment.", by("segment"), to("campaign")),

		fact[ScoreChanged]("Contacts' scores changed.", by("campaign", "track")),
		fact[StageChanged]("Contacts moved to another stage.", by("campaign", "track")),
		fact[TagChanged]("Contacts got or lost tags.", by("campaign", "track")),

		entry[UsageRecorded]("So much of a metered thing was used in a window of time.", by("schedule"), nil),
	}
}

// Lookup finds the entry of a type; ok is false for a type that is not in the catalogue.
func Lookup(eventType string) (e Entry, ok bool) {
	e, ok = byType()[eventType]
	return e, ok
}

// byType is the catalogue, made once: every event is looked up in it.
var byType = sync.OnceValue(func() map[string]Entry {
	m := map[string]Entry{}
	for _, e := range Catalogue() {
		m[e.Type] = e
	}
	return m
})

func entry[T Data](description string, producers, consumers []string) Entry {
	var data T
	return Entry{
		Type: data.EventType(), Description: description, Producers: producers, Consumers: consumers,
		GoType: reflect.TypeFor[T](),
	}
}

// fact is an entry for the doorbell of facts: all of them go to the functions that read the table of facts with a cursor.
func fact[T Data](description string, producers []string) Entry {
	e := entry[T](description, producers, to("segment", "campaign", "track"))
	e.Stream = StreamFacts
	return e
}

func direct(e Entry) Entry {
	e.Direct = true
	return e
}

func by(names ...string) []string { return names }

func to(functions ...string) []string { return functions }
