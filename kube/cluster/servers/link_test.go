package servers

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
)

// There is no server for ten minutes. The pauses between tries grow and have jitter, and the server is found within
// half a minute when it is back.
func TestLinkPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		back := time.Now().Add(10 * time.Minute)
		tries := 0
		l := NewLink(func(context.Context) error {
			tries++
			if time.Now().Before(back) {
				return errors.New("nobody there")
			}
			return nil
		}, slog.New(slog.DiscardHandler))
		done := make(chan struct{})
		go func() { defer close(done); l.Run(ctx) }()
		asked := 0
		err := l.Do(ctx, func() error { asked++; return nil })
		late := time.Since(back)
		if err != nil || asked != 1 || late < 0 || late > 2*lastPause {
			t.Errorf("asked %d times, %v after the server was back: %v", asked, late, err)
		}
		if tries < 20 || tries > 150 {
			t.Errorf("%d tries in ten minutes", tries)
		}
		// A server that says it is ready and then fails every request is not flooded.
		start, tries := time.Now(), 0
		err = l.Do(ctx, func() error {
			tries++
			if time.Since(start) < time.Minute {
				return errors.New("broken")
			}
			return nil
		})
		if err != nil || tries < 3 || tries > 30 {
			t.Errorf("%d requests in a minute of failures: %v", tries, err)
		}
		if since, err := l.State(); !since.IsZero() || err != nil {
			t.Errorf("state %v, %v", since, err)
		}
		cancel()
		<-done
	})
}
