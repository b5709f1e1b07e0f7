package overlay

import (
	"testing"
	"time"

	"tapestry.dev/tapestry/test/await"
)

// A watched peer answers beats while it is willing, and not otherwise; a peer that nobody watches is asked nothing.
func TestBeats(t *testing.T) {
	a, b := pair(t, nil)
	if got := a.Beats(); len(got) != 0 {
		t.Fatalf("nobody is watched, and there are beats: %v", got)
	}
	watched := b.as(b.loopback())
	watched.Watched = true
	a.set(watched)
	await.Until(t, "the peer to be watched", func() bool { l := a.Beats(); return len(l) == 1 && !l[0].Since.IsZero() })
	last := func() time.Time { return a.Beats()[0].Answered }
	b.AnswerBeats(time.Now().Add(time.Hour))
	await.Until(t, "an answer", func() bool { return !last().IsZero() })
	one := last()
	await.Until(t, "another answer", func() bool { return last().After(one) })
	b.AnswerBeats(time.Time{})
	// Answers that were on the way may still come; then there is none for as long as four beats.
	await.Until(t, "the end of the answers", func() bool { return time.Since(last()) > 4*lookIdle })
	if got := a.Beats()[0].Name; got != watched.Name {
		t.Errorf("the peer is called %q, want %q", got, watched.Name)
	}
	watched.Watched = false
	a.set(watched)
	await.Until(t, "nobody to be watched", func() bool { return len(a.Beats()) == 0 })
}
