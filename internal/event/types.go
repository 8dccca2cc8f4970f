package event

//go:generate go test . -run TestGenerated -update

// The types of the catalogue: onda.<entity>.<verb>.v1, facts in the past tense, commands ending in "requested".
const (
	TypeCampaignStarted         = "onda.campaign.started.v1"
	TypeCampaignPaused          = "onda.campaign.paused.v1"
	TypeCampaignResumed         = "onda.campaign.resumed.v1"
	TypeCampaignCancelled       = "onda.campaign.cancelled.v1"
	TypeCampaignCompleted       = "onda.campaign.completed.v1"
	TypeScheduleDue             = "onda.schedule.due.v1"
	TypeEmailSendRequested      = "onda.email.send.requested.v1"
	TypeEmailRequested          = "onda.email.requested.v1"
	TypeEmailBatchSent          = "onda.email.batch.sent.v1"
	TypeEmailSent               = "onda.email.sent.v1"
	TypeEmailDelivered          = "onda.email.delivered.v1"
	TypeEmailDeferred           = "onda.email.deferred.v1"
	TypeEmailFailed             = "onda.email.failed.v1"
	TypeEmailBounced            = "onda.email.bounced.v1"
	TypeEmailComplained         = "onda.email.complained.v1"
	TypeEmailSuppressed         = "onda.email.suppressed.v1"
	TypeEmailOpened             = "onda.email.opened.v1"
	TypeEmailClicked            = "onda.email.clicked.v1"
	TypeHitReclassified         = "onda.hit.reclassified.v1"
	TypeConsentGranted          = "onda.consent.granted.v1"
	TypeConsentPending          = "onda.consent.pending.v1"
	TypeConsentWithdrawn        = "onda.consent.withdrawn.v1"
	TypeSuppressionAdded        = "onda.suppression.added.v1"
	TypeSuppressionRemoved      = "onda.suppression.removed.v1"
	TypePageViewed              = "onda.page.viewed.v1"
	TypeEventTracked            = "onda.event.tracked.v1"
	TypeContactIdentified       = "onda.contact.identified.v1"
	TypeFormSubmitted           = "onda.form.submitted.v1"
	TypeFormRejected            = "onda.form.rejected.v1"
	TypeFormConfirmed           = "onda.form.confirmed.v1"
	TypeContactChanged          = "onda.contact.changed.v1"
	TypeContactMerged           = "onda.contact.merged.v1"
	TypeContactUnmerged         = "onda.contact.unmerged.v1"
	TypeContactErased           = "onda.contact.erased.v1"
	TypeSegmentRebuildRequested = "onda.segment.rebuild.requested.v1"
	TypeSegmentChanged          = "onda.segment.changed.v1"
	TypeScoreChanged            = "onda.score.changed.v1"
	TypeStageChanged            = "onda.stage.changed.v1"
	TypeTagChanged              = "onda.tag.changed.v1"
	TypeUsageRecorded           = "onda.usage.recorded.v1"
)

// EventType implements Data.
func (CampaignStarted) EventType() string { return TypeCampaignStarted }

// EventType implements Data.
func (CampaignPaused) EventType() string { return TypeCampaignPaused }

// EventType implements Data.
func (CampaignResumed) EventType() string { return TypeCampaignResumed }

// EventType implements Data.
func (CampaignCancelled) EventType() string { return TypeCampaignCancelled }

// EventType implements Data.
func (CampaignCompleted) EventType() string { return TypeCampaignCompleted }

// EventType implements Data.
func (ScheduleDue) EventType() string { return TypeScheduleDue }

// EventType implements Data.
func (EmailSendRequested) EventType() string { return TypeEmailSendRequested }

// EventType implements Data.
func (EmailRequested) EventType() string { return TypeEmailRequested }

// EventType implements Data.
func (EmailBatchSent) EventType() string { return TypeEmailBatchSent }

// EventType implements Data.
func (EmailSent) EventType() string { return TypeEmailSent }

// EventType implements Data.
func (EmailDelivered) EventType() string { return TypeEmailDelivered }

// EventType implements Data.
func (EmailDeferred) EventType() string { return TypeEmailDeferred }

// EventType implements Data.
func (EmailFailed) EventType() string { return TypeEmailFailed }

// EventType implements Data.
func (EmailBounced) EventType() string { return TypeEmailBounced }

// EventType implements Data.
func (EmailComplained) EventType() string { return TypeEmailComplained }

// EventType implements Data.
func (EmailSuppressed) EventType() string { return TypeEmailSuppressed }

// EventType implements Data.
func (EmailOpened) EventType() string { return TypeEmailOpened }

// EventType implements Data.
func (EmailClicked) EventType() string { return TypeEmailClicked }

// EventType implements Data.
func (HitReclassified) EventType() string { return TypeHitReclassified }

// EventType implements Data.
func (ConsentGranted) EventType() string { return TypeConsentGranted }

// EventType implements Data.
func (ConsentPending) EventType() string { return TypeConsentPending }

// EventType implements Data.
func (ConsentWithdrawn) EventType() string { return TypeConsentWithdrawn }

// EventType implements Data.
func (SuppressionAdded) EventType() string { return TypeSuppressionAdded }

// EventType implements Data.
func (SuppressionRemoved) EventType() string { return TypeSuppressionRemoved }

// EventType implements Data.
func (PageViewed) EventType() string { return TypePageViewed }

// EventType implements Data.
func (EventTracked) EventType() string { return TypeEventTracked }

// EventType implements Data.
func (ContactIdentified) EventType() string { return TypeContactIdentified }

// EventType implements Data.
func (FormSubmitted) EventType() string { return TypeFormSubmitted }

// EventType implements Data.
func (FormRejected) EventType() string { return TypeFormRejected }

// EventType implements Data.
func (FormConfirmed) EventType() string { return TypeFormConfirmed }

// EventType implements Data.
func (ContactChanged) EventType() string { return TypeContactChanged }

// EventType implements Data.
func (ContactMerged) EventType() string { return TypeContactMerged }

// EventType implements Data.
func (ContactUnmerged) EventType() string { return TypeContactUnmerged }

// EventType implements Data.
func (ContactErased) EventType() string { return TypeContactErased }

// EventType implements Data.
func (SegmentRebuildRequested) EventType() string { return TypeSegmentRebuildRequested }

// EventType implements Data.
func (SegmentChanged) EventType() string { return TypeSegmentChanged }

// EventType implements Data.
func (ScoreChanged) EventType() string { return TypeScoreChanged }

// EventType implements Data.
func (StageChanged) EventType() string { return TypeStageChanged }

// EventType implements Data.
func (TagChanged) EventType() string { return TypeTagChanged }

// EventType implements Data.
func (UsageRecorded) EventType() string { return TypeUsageRecorded }
