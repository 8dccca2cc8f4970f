// Package campaign moves contacts through campaigns: it plans the batches of broadcasts, enrols contacts into journeys and takes them from
// step to step, and starts, pauses, resumes, cancels and reports runs.
//
// Invariants. Whatever is done to many contacts is one statement a chunk, in a transaction of at most a few seconds. A journey is held by its row
// lock while its steps are taken: its change of step, the mails that the step plans, its history and what it changes of the contact
// commit together, so that a step is done once however often it is tried. A fact that arrives only makes the journeys of its contact due; what they
// decide, they read from the rows of facts, by the time at which each happened: so the order in which facts are read, and how late, decides nothing.
//
// Locks are taken in one order: runs, journeys, contacts. Only the reader of facts waits for journeys; whoever moves or cancels them passes over those that are locked.
// Contacts are locked in order of id, all of a pass at once. Whoever begins with contacts (contact.Expire does) touches no journey: it leaves a fact.
package campaign
