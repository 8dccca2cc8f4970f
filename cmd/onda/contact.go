package main

type contactCmd struct {
	Show    contactShowCmd    `cmd:"" help:"Show who a contact is, and all that happened, newest first."`
	Merge   contactMergeCmd   `cmd:"" help:"Make one contact of two."`
	Unmerge contactUnmergeCmd `cmd:"" help:"Undo a merge."`
	Export  contactExportCmd  `cmd:"" help:"Write all that is stored of a person, as JSON."`
	Erase   contactEraseCmd   `cmd:"" help:"Erase a person: show what there is, and with --confirm do it."`
}
