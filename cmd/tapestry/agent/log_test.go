package agent

import (
	"errors"
	"fmt"
	"log"
	"log/slog"
	"strings"
	"testing"

	"tapestry.dev/tapestry/visible/visibletest"
)

// Text of others, wherever it is in a log line, stays on that line and moves no cursor.
func TestLogOfHostile(t *testing.T) {
	const bad = visibletest.Hostile
	var out strings.Builder
	l := newLog(&out, slog.LevelDebug, bad)
	was := slog.Default()
	slog.SetDefault(l)
	defer slog.SetDefault(was)
	err := fmt.Errorf("attach pod %s: %w", bad, errors.Join(errors.New(bad), errors.New(bad)))
	for name, say := range map[string]func(){
		"message":     func() { l.Warn("wireguard: " + bad) },
		"value":       func() { l.Info("m", "k", bad, "list", []string{bad}, "any", struct{ S string }{bad}) },
		"key":         func() { l.Info("m", bad, 1) },
		"error":       func() { l.Error("m", "err", err) },
		"package log": func() { log.Print(bad) },
		"http":        func() { slog.NewLogLogger(l.Handler(), slog.LevelDebug).Print(bad) },
	} {
		out.Reset()
		say()
		visibletest.Check(t, name, out.String())
		if n := strings.Count(out.String(), "\n"); n != 1 {
			t.Errorf("%s is %d lines: %q", name, n, out.String())
		}
	}
}
