package servers

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/wait"
)

// Link says whether any API server can be reached. Make it with NewLink. While none can be reached, one goroutine
// tries, with growing pauses, and all requests wait for it. When a server is back, they continue at once.
type Link struct {
	probe func(context.Context) error
	log   *slog.Logger

	broken chan struct{} // capacity 1
	missed chan struct{} // closed by the first try that fails

	mu sync.Mutex
	// mu guards the rest.
	up    chan struct{} // closed while a server can be reached
	since time.Time     // when the last server was lost
	err   error         // why it was lost
}

// The pauses between two tries, before jitter.
const (
	firstPause = 100 * time.Millisecond
	lastPause  = 5 * time.Second
	// steadyTime is how long a server must have been reachable before the pauses start again at firstPause.
	steadyTime = 30 * time.Second
)

// NewLink returns a Link that starts to probe when Run is called. probe returns nil when a server says that it is
// ready.
func NewLink(probe func(context.Context) error, log *slog.Logger) *Link {
	l := &Link{probe: probe, log: log, broken: make(chan struct{}, 1), missed: make(chan struct{}), up: make(chan struct{}), since: time.Now()}
	l.broken <- struct{}{} // no request is sent before a server has said that it is ready
	return l
}

// Run looks for a server whenever none can be reached, until ctx is done.
func (l *Link) Run(ctx context.Context) {
	pause := Pauses()
	found := time.Time{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.broken:
		}
		if time.Since(found) > steadyTime {
			pause = Pauses()
		} else if !Sleep(ctx, pause.Step()) { // a server said that it was ready, and was not
			return
		}
		for {
			err := l.probe(ctx)
			if err == nil || !unreachable(err) && !notReady(err) { // a server that refuses the request exists
				break
			}
			l.note(err)
			if !Sleep(ctx, pause.Step()) {
				return
			}
		}
		found = time.Now()
		l.found()
	}
}

// Pauses returns the pauses between tries, which grow and have jitter.
func Pauses() wait.Backoff {
	return wait.Backoff{Duration: firstPause, Factor: 2, Jitter: 0.5, Steps: 8, Cap: lastPause}
}

// Sleep waits for d. It returns false when ctx is done before.
func Sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// Missed is closed once a try to reach a server has failed.
func (l *Link) Missed() <-chan struct{} { return l.missed }

// note remembers why no server can be reached.
func (l *Link) note(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.missed:
	default:
		close(l.missed)
	}
	if l.err == nil {
		l.log.Warn("no API server can be reached; going on with what is known", "err", err)
	}
	l.err = err
}

func (l *Link) found() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		l.log.Info("the API server is there again", "after", time.Since(l.since).Round(time.Millisecond))
	}
	l.err = nil
	close(l.up)
}

// lost handles a failed request that was begun while the link was up.
func (l *Link) lost(up <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.up != up { // the link has been lost and found since
		return
	}
	select {
	case <-l.up:
		l.up, l.since = make(chan struct{}), time.Now()
		l.broken <- struct{}{}
	default:
	}
}

// wait waits until a server can be reached.
func (l *Link) wait(ctx context.Context) (up <-chan struct{}, err error) {
	l.mu.Lock()
	up = l.up
	l.mu.Unlock()
	select {
	case <-up:
		return up, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Do calls request as soon as a server can be reached, and again when the server was lost on the way.
func (l *Link) Do(ctx context.Context, request func() error) error {
	for {
		up, err := l.wait(ctx)
		if err != nil {
			return err
		}
		if err = request(); err == nil || !unreachable(err) || ctx.Err() != nil {
			return err
		}
		l.lost(up)
	}
}

// State returns since when no server can be reached, and why; a zero time when one can.
func (l *Link) State() (since time.Time, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.up:
		return time.Time{}, nil
	default:
		return l.since, l.err
	}
}

// unreachable reports whether err is something other than an API server's answer.
func unreachable(err error) bool {
	var status apierrors.APIStatus
	return err != nil && !errors.As(err, &status)
}

// notReady reports whether a server has answered that it is not ready.
func notReady(err error) bool {
	return apierrors.IsInternalError(err) || apierrors.IsServiceUnavailable(err) || apierrors.IsServerTimeout(err) || apierrors.IsTooManyRequests(err) || apierrors.IsUnexpectedServerError(err)
}
