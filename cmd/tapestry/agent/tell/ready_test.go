package tell

import (
	"context"
	"errors"
	"testing"
)

// TestLasting: what only a successor puts right keeps an agent from being ready, but not from being replaced.
func TestLasting(t *testing.T) {
	awaited, broken := false, errors.New("a pod has no TAP")
	tell := &Teller{o: Options{Awaited: func() bool { return awaited }}}
	var found error
	check := tell.lasting(func(context.Context) error { return found })
	for _, c := range []struct {
		found   error
		awaited bool
		want    error
	}{{nil, false, nil}, {nil, true, nil}, {broken, false, broken}, {broken, true, nil}} {
		found, awaited = c.found, c.awaited
		if got := check(t.Context()); got != c.want {
			t.Errorf("%v, awaited: %v: %v, want %v", c.found, c.awaited, got, c.want)
		}
	}
}
