package suite

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"tapestry.dev/tapestry/bench/process"
	"tapestry.dev/tapestry/bench/programs"
)

// List prints suites with their subjects and cases, and which programs are missing. Like Run it must run in a user
// namespace of its own.
func List(w io.Writer, suites []Suite, spawn process.Spawn) error {
	var b strings.Builder
	missing := map[string]error{}
	for _, s := range suites {
		fmt.Fprintf(&b, "%s: %s\n", s.Name, s.About)
		if s.alone != nil {
			continue
		}
		ours, others := Names([]Suite{s})
		for _, row := range []struct {
			title string
			names []string
		}{{"ours", ours}, {"others", others}, {"cases", s.Cases}, {"with --programs", s.Programs}} {
			if len(row.names) > 0 {
				fmt.Fprintf(&b, "  %s: %s\n", row.title, strings.Join(row.names, ", "))
			}
		}
		s.missing(missing, spawn)
	}
	for i, name := range slices.Sorted(maps.Keys(missing)) {
		if i == 0 {
			b.WriteString("missing:\n")
		}
		fmt.Fprintf(&b, "  %s: %v\n", name, missing[name])
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// missing adds to to what cannot be measured, and why.
func (s Suite) missing(to map[string]error, spawn process.Spawn) {
	for _, subject := range s.Subjects {
		if subject.try == nil {
			continue
		}
		if err := subject.try(spawn); err != nil {
			to[subject.Name] = err
		}
	}
	if s.programs == nil {
		return
	}
	for _, c := range s.programs(s.Time) {
		if _, err := programs.Find(programOf(c)); err != nil {
			to[programOf(c)] = err
		}
	}
}

// Names returns the names of all subjects, each once, ours apart from the others.
func Names(suites []Suite) (ours, others []string) {
	for _, s := range suites {
		for _, subject := range s.Subjects {
			if subject.Ours {
				ours = append(ours, subject.Name)
			} else {
				others = append(others, subject.Name)
			}
		}
	}
	return unique(ours), unique(others)
}
