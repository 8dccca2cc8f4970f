package spec

import "slices"

// stageRule is the name of a stage: one of the list in Settings.
func stageRule() rule[string] {
	return scalar("a stage such as customer", namePattern, asText)
}

// stage checks that the Settings have a stage.
func (c *checker) stage(p position, name string) {
	doc, ok := c.find(KindSettings, "settings")
	if ok && doc == nil { // what is wrong with them was said
		return
	}
	var stages []string
	if s, is := doc.(*Settings); is {
		stages = s.Stages
	}
	switch {
	case len(stages) == 0:
		c.fail(p, "there are no stages: list them in the Settings, such as stages: [%s]", name)
	case !slices.Contains(stages, name):
		c.fail(p, "%s, as the Settings have them", unknown("stage", name, stages))
	}
}
