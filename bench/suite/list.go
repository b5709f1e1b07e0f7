package suite

import (
	"fmt"
	"io"
	"strings"
)

// List prints suites with their subjects and cases.
func List(w io.Writer, suites []Suite) error {
	var b strings.Builder
	for _, s := range suites {
		fmt.Fprintf(&b, "%s: %s\n", s.Name, s.About)
		if s.alone != nil {
			continue
		}
		var subjects []string
		for _, subject := range s.Subjects {
			subjects = append(subjects, subject.Name)
		}
		fmt.Fprintf(&b, "  subjects: %s\n  cases: %s\n", strings.Join(subjects, ", "), strings.Join(s.Cases, ", "))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// Names are those of all subjects, each once, ours apart from the others.
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
