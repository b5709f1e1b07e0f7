package process

import (
	"os/exec"
	"strings"
	"testing"
)

// A child that ends without a line is an error that names the child, whatever its exit status.
func TestStartOfAProcessThatSaysNothing(t *testing.T) {
	for script, want := range map[string]string{
		"exit 0":                    "did not answer with a line: EOF",
		"echo no such >&2; exit 3":  "exit status 3: no such",
		"printf unfinished; exit 0": "did not answer with a line: EOF",
	} {
		p, line, err := Start(nil, exec.Command("sh", "-c", script))
		if err == nil {
			t.Errorf("%s: it started and said %q", script, line)
			_ = p.Close()
			continue
		}
		if text := err.Error(); !strings.Contains(text, want) || !strings.Contains(text, "sh -c") || strings.Contains(text, "%!") {
			t.Errorf("%s: got %v", script, err)
		}
	}
}
