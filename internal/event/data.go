package event

import (
	"strconv"
	"strings"
	"time"
)

// Data is the payload of one event of the catalogue.
type Data interface {
	// EventType is the CloudEvents type, such as "onda.email.sent.v1".
	EventType() string
}

// Campaign names a run and the campaign it is a run of. It is the payload of the facts about a run's state.
type Campaign struct {
	// Run is the campaign run's id.
	Run int64 `json:"run" is:"id"`
	// Campaign is the name of the Campaign or Broadcast document.
	Campaign string `json:"campaign" is:"name"`
}

// CampaignStarted says that a run has begun.
type CampaignStarted struct{ Campaign }

// CampaignPaused says that a run sends nothing until it is resumed; its recipients stay queued.
type CampaignPaused struct{ Campaign }

// CampaignResumed says that a paused run goes on.
type CampaignResumed struct{ Campaign }

// CampaignCancelled says that a run ends early: what is still queued becomes suppressed with the reason cancelled.
type CampaignCancelled struct{ Campaign }

// CampaignCompleted says that every recipient of a run has an outcome and nobody can enter it any more.
type CampaignCompleted struct{ Campaign }

// ScheduleDue tells a function that the tenant has work of its kind due. It is posted straight to the function, past any broker.
type ScheduleDue struct {
	// Function is the name of the function that has work due.
	Function string `json:"function" is:"slug"`
}

// EmailSendRequested asks for a worker: the run has open batches to lease.
type EmailSendRequested struct {
	// Run is the campaign run's id.
	Run int64 `json:"run" is:"id"`
}

// EmailRequested asks for one transactional mail: either one that is stored already, by its Delivery, or a new one from another
// program, by Email, Contact and Key.
type EmailRequested struct {
	// Delivery is the id of a mail that was stored by POST /v1/emails.
	Delivery int64 `json:"delivery,omitempty" is:"id"`
	// Email is the name of the Email document to render.
	Email string `json:"email,omitempty" is:"name"`
	// Contact is the id of the one who gets it.
	Contact int64 `json:"contact,omitempty" is:"id"`
	// Data is what the template sees as data.*.
	Data map[string]any `json:"data,omitempty"`
	// Key makes a repeated request the same request; it is kept for 7 days.
	Key string `json:"key,omitempty" is:"text"`
}

// OneOf is the choice between a stored delivery and a new mail.
func (EmailRequested) OneOf() [][]string {
	return [][]string{{"delivery"}, {"email", "contact", "key", "data?"}}
}

// EmailBatchSent says that a batch is closed: each of its recipients has an outcome.
type EmailBatchSent struct {
	// Run is the campaign run's id.
	Run int64 `json:"run" is:"id"`
	// Batch is the batch's id.
	Batch int64 `json:"batch" is:"id"`
	// Counts tells how many recipients ended in each outcome.
	Counts Outcomes `json:"counts"`
}

// Outcomes counts recipients by outcome.
type Outcomes struct {
	// Sent is the number of mails that the receiving server took.
	Sent int64 `json:"sent" is:"count"`
	// Deferred is the number that will be tried again.
	Deferred int64 `json:"deferred" is:"count"`
	// Failed is the number that was refused for good.
	Failed int64 `json:"failed" is:"count"`
	// Suppressed is the number that was not to be mailed.
	Suppressed int64 `json:"suppressed" is:"count"`
	// Unknown is the number of which nobody knows whether they went out.
	Unknown int64 `json:"unknown" is:"count"`
}

// Deliveries is the payload of the facts about mails.
type Deliveries struct {
	// Items are the mails, at most 500.
	Items []Delivery `json:"items"`
}

// plain encodes what every second event about mails is, items of numbers only: to have it encoded and checked as others are is a twentieth of what sending a mail costs.
// ok is false for all else, right or wrong.
func (d Deliveries) plain() (body []byte, ok bool) {
	if len(d.Items) == 0 || len(d.Items) > MaxItems {
		return nil, false
	}
	body = append(make([]byte, 0, 64*len(d.Items)+16), `{"items":[`...)
	for i, item := range d.Items {
		if item.Delivery < 1 || item.Contact < 0 || item.Run < 0 || item.Reason != "" {
			return nil, false
		}
		if i > 0 {
			body = append(body, ',')
		}
		body = strconv.AppendInt(append(body, `{"delivery":`...), item.Delivery, 10)
		if item.Contact > 0 {
			body = strconv.AppendInt(append(body, `,"contact":`...), item.Contact, 10)
		}
		if item.Run > 0 {
			body = strconv.AppendInt(append(body, `,"run":`...), item.Run, 10)
		}
		body = append(body, '}')
	}
	return append(body, "]}"...), true
}

// Delivery is one mail of a doorbell.
type Delivery struct {
	// Delivery is the mail's id: its batch's id << 9 | its number in the batch.
	Delivery int64 `json:"delivery" is:"id"`
	// Contact is the recipient's id.
	Contact int64 `json:"contact,omitempty" is:"id"`
	// Run is the campaign run's id.
	Run int64 `json:"run,omitempty" is:"id"`
	// Reason says why, in one word of a closed list; never what a server answered, which may quote an address.
	Reason string `json:"reason,omitempty" is:"slug"`
}

// EmailSent says that the next server took the mails.
type EmailSent struct{ Deliveries }

// EmailDelivered says that the mails reached their mailboxes, as far as a provider or a report tells.
type EmailDelivered struct{ Deliveries }

// EmailDeferred says that the mails were refused for the moment and will be tried again.
type EmailDeferred struct{ Deliveries }

// EmailFailed says that the mails were refused for good, or tried until they expired.
type EmailFailed struct{ Deliveries }

// EmailBounced says that mails that had been sent came back (RFC 3464).
type EmailBounced struct{ Deliveries }

// EmailComplained says that recipients marked the mails as spam (RFC 5965).
type EmailComplained struct{ Deliveries }

// EmailSuppressed says that the mails were not to be sent, each with the reason.
type EmailSuppressed struct{ Deliveries }

// Hits is the payload of the facts about opens and clicks.
type Hits struct {
	// Items are the hits, at most 500.
	Items []Hit `json:"items"`
}

// Hit is one open or click.
type Hit struct {
	// Delivery is the mail's id; absent where it was tracked in the aggregate only.
	Delivery int64 `json:"delivery,omitempty" is:"id"`
	// Contact is the recipient's id; absent where it was tracked in the aggregate only.
	Contact int64 `json:"contact,omitempty" is:"id"`
	// Run is the campaign run's id.
	Run int64 `json:"run,omitempty" is:"id"`
	// Link is the id of the link that was clicked.
	Link int64 `json:"link,omitempty" is:"id"`
	// Verdict tells who made the hit; unknown while it is held.
	Verdict string `json:"verdict" is:"enum=human|machine|unknown"`
	// Reason says what the verdict rests on, in one word.
	Reason string `json:"reason,omitempty" is:"slug"`
}

// EmailOpened says that the pixels of mails were fetched.
type EmailOpened struct{ Hits }

// EmailClicked says that links in mails were followed.
type EmailClicked struct{ Hits }

// HitReclassified corrects the verdict of hits that were told before.
type HitReclassified struct{ Hits }

// Consents is the payload of the facts about consent.
type Consents struct {
	// Items are the entries of the ledger, at most 500.
	Items []Consent `json:"items"`
}

// Consent is one entry of the consent ledger.
type Consent struct {
	// Contact is the id of the one whose consent it is.
	Contact int64 `json:"contact" is:"id"`
	// Purpose is a topic's name, or tracking.email or tracking.web.
	Purpose string `json:"purpose" is:"name"`
	// Channel is what the consent is for.
	Channel string `json:"channel,omitempty" is:"slug"`
}

// ConsentGranted says that contacts may be mailed, or tracked, for a purpose.
type ConsentGranted struct{ Consents }

// ConsentPending says that contacts have asked for it and not confirmed it yet.
type ConsentPending struct{ Consents }

// ConsentWithdrawn says that contacts do not want it any more.
type ConsentWithdrawn struct{ Consents }

// Suppressions is the payload of the facts about addresses that get no mail.
type Suppressions struct {
	// Items are the suppressions, at most 500.
	Items []Suppression `json:"items"`
}

// Suppression is one address that gets no mail, or gets mail again. The address itself is never told.
type Suppression struct {
	// Contact is the id of the contact who has the address, where there is one.
	Contact int64 `json:"contact,omitempty" is:"id"`
	// Reason says why, in one word.
	Reason string `json:"reason" is:"slug"`
}

// SuppressionAdded says that addresses get no mail from now on.
type SuppressionAdded struct{ Suppressions }

// SuppressionRemoved says that addresses may get mail again.
type SuppressionRemoved struct{ Suppressions }

// Activities is the payload of the facts about what visitors and contacts do.
type Activities struct {
	// Items are what was done, at most 500: ids and names, no properties.
	Items []Activity `json:"items"`
}

// plain encodes activities whose names need no escaping: most, and there may be tens of thousands a second. ok is false for all else, right or wrong.
func (a Activities) plain() (body []byte, ok bool) {
	if len(a.Items) == 0 || len(a.Items) > MaxItems {
		return nil, false
	}
	escaped := func(c rune) bool { return c < ' ' || c > '~' || strings.ContainsRune(`"\<>&`, c) }
	body = append(make([]byte, 0, 64*len(a.Items)+16), `{"items":[`...)
	last := "" // most have the same name
	for i, item := range a.Items {
		if item.Contact < 0 || item.Name != last && (len(item.Name) > 256 || strings.ContainsFunc(item.Name, escaped)) {
			return nil, false
		}
		last = item.Name
		if i > 0 {
			body = append(body, ',')
		}
		body = append(body, '{')
		if item.Contact > 0 {
			body = strconv.AppendInt(append(body, `"contact":`...), item.Contact, 10)
		}
		if item.Name != "" {
			if item.Contact > 0 {
				body = append(body, ',')
			}
			body = append(append(append(body, `"name":"`...), item.Name...), '"')
		}
		body = append(body, '}')
	}
	return append(body, "]}"...), true
}

// Activity is one thing that a visitor or a contact did.
type Activity struct {
	// Contact is the id of the one who did it; absent for a visitor who is not a contact.
	Contact int64 `json:"contact,omitempty" is:"id"`
	// Name is the name of the page or event as the customer's own site or program calls it.
	Name string `json:"name,omitempty" is:"text"`
}

// PageViewed says that pages of the customer's site were looked at.
type PageViewed struct{ Activities }

// EventTracked says that custom events came in.
type EventTracked struct{ Activities }

// ContactIdentified says that visitors turned out to be contacts.
type ContactIdentified struct{ Activities }

// Submissions is the payload of the facts about forms.
type Submissions struct {
	// Items are the submissions, at most 500.
	Items []Submission `json:"items"`
}

// Submission is one form that was sent in.
type Submission struct {
	// Form is the Form document's name.
	Form string `json:"form" is:"name"`
	// Submission is the stored submission's id.
	Submission int64 `json:"submission,omitempty" is:"id"`
	// Contact is the id of the one who sent it in.
	Contact int64 `json:"contact,omitempty" is:"id"`
	// Reason says in one word why it was rejected.
	Reason string `json:"reason,omitempty" is:"slug"`
}

// FormSubmitted says that forms were sent in and accepted.
type FormSubmitted struct{ Submissions }

// FormRejected says that forms were sent in and refused as abuse.
type FormRejected struct{ Submissions }

// FormConfirmed says that an opt-in was confirmed.
type FormConfirmed struct{ Submissions }

// ContactChanged says that contacts were made or their fields changed.
type ContactChanged struct {
	// Contacts are the ids, at most 500.
	Contacts []int64 `json:"contacts" is:"id"`
	// Fields are the names of the fields that changed; absent where any may have.
	Fields []string `json:"fields,omitempty" is:"name"`
}

// ContactMerged says that contacts were merged into others by explicit command.
type ContactMerged struct {
	// Items are the merges, at most 500.
	Items []Merge `json:"items"`
}

// Merge is one contact that became part of another.
type Merge struct {
	// Contact is the id that is no more; a forwarding row remains.
	Contact int64 `json:"contact" is:"id"`
	// Into is the id that took it over.
	Into int64 `json:"into" is:"id"`
}

// ContactUnmerged says that merges were undone: who had been merged into another is a contact of its own again.
type ContactUnmerged struct {
	// Items are the merges that are no more, at most 500.
	Items []Merge `json:"items"`
}

// ContactErased says that contacts were erased; what is left of them is their ids.
type ContactErased struct {
	// Contacts are the ids, at most 500.
	Contacts []int64 `json:"contacts" is:"id"`
}

// SegmentRebuildRequested asks for a segment's memberships to be computed in full.
type SegmentRebuildRequested struct {
	// Segment is the Segment document's name.
	Segment string `json:"segment" is:"name"`
}

// SegmentChanged says that contacts joined or left a segment.
type SegmentChanged struct {
	// Segment is the Segment document's name.
	Segment string `json:"segment" is:"name"`
	// Joined is how many contacts joined.
	Joined int64 `json:"joined" is:"count"`
	// Left is how many contacts left.
	Left int64 `json:"left" is:"count"`
	// JoinedContacts are the ids of those who joined, the first 500.
	JoinedContacts []int64 `json:"joinedContacts,omitempty" is:"id"`
	// LeftContacts are the ids of those who left, the first 500.
	LeftContacts []int64 `json:"leftContacts,omitempty" is:"id"`
}

// ScoreChanged says that contacts' scores changed.
type ScoreChanged struct {
	// Items are the new scores, at most 500, each of a group.
	Items []Score `json:"items"`
}

// Score is a contact's score.
type Score struct {
	// Contact is the contact's id.
	Contact int64 `json:"contact" is:"id"`
	// Group is the group of points; score is the one that is meant where none is named.
	Group string `json:"group" is:"name"`
	// Score is the score after the change; it may be below zero.
	Score int64 `json:"score" is:"number"`
}

// StageChanged says that contacts moved to another stage.
type StageChanged struct {
	// Items are the new stages, at most 500.
	Items []Stage `json:"items"`
}

// Stage is a contact's stage.
type Stage struct {
	// Contact is the contact's id.
	Contact int64 `json:"contact" is:"id"`
	// Stage is the stage after the change.
	Stage string `json:"stage" is:"text"`
}

// TagChanged says that contacts got or lost tags.
type TagChanged struct {
	// Items are the changes, at most 500.
	Items []Tag `json:"items"`
}

// Tag is one tag that a contact got or lost.
type Tag struct {
	// Contact is the contact's id.
	Contact int64 `json:"contact" is:"id"`
	// Tag is the tag.
	Tag string `json:"tag" is:"text"`
	// Change tells which of both.
	Change string `json:"change" is:"enum=added|removed"`
}

// UsageRecorded says how much of a metered thing the tenant used in a window of time, for billing.
type UsageRecorded struct {
	// Meter is what is counted.
	Meter string `json:"meter" is:"slug"`
	// Quantity is how much, in the meter's unit.
	Quantity int64 `json:"quantity" is:"count"`
	// Window is when.
	Window Window `json:"window"`
}

// Window is a span of time: from its start up to, and without, its end.
type Window struct {
	// From is the first moment.
	From time.Time `json:"from"`
	// To is the first moment after it.
	To time.Time `json:"to"`
}
