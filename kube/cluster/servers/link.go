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

// Link says whether any API server can be reached. Make it with NewLink. While none can, one goroutine tries, with
// growing pauses, and all requests wait for it: when the server is back they go on at once, each where it was.
type Link struct {
	probe func(context.Context) error
	log   *slog.Logger

	broken chan struct{} // capacity 1

	mu sync.Mutex
	// mu guards the rest.
	up    chan struct{} // closed while a server can be reached
	since time.Time     // when it was lost
	err   error         // why
}

// The pauses between two tries, before jitter.
const (
	firstPause = 100 * time.Millisecond
	lastPause  = 5 * time.Second
	// steadyTime is how long a server must have been there before the pauses begin anew.
	steadyTime = 30 * time.Second
)

// NewLink gives a Link that begins to look when it is run. probe gives nil when a server says that it is ready.
func NewLink(probe func(context.Context) error, log *slog.Logger) *Link {
	l := &Link{probe: probe, log: log, broken: make(chan struct{}, 1), up: make(chan struct{}), since: time.Now()}
	l.broken <- struct{}{} // nothing is asked for before a server has said that it is ready
	return l
}

// Run looks for a server whenever none is known, until ctx is done.
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
		} else if !Sleep(ctx, pause.Step()) { // it says it is ready, and is not
			return
		}
		for {
			err := l.probe(ctx)
			if err == nil || !unreachable(err) && !notReady(err) { // a server that refuses us is there
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

// Pauses are those between tries, growing and with jitter.
func Pauses() wait.Backoff {
	return wait.Backoff{Duration: firstPause, Factor: 2, Jitter: 0.5, Steps: 8, Cap: lastPause}
}

// sleep reports false when ctx is done.
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

// note remembers why there is no server.
func (l *Link) note(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
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

// lost is told of an error of a request that was begun while the link was up.
func (l *Link) lost(up <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.up != up { // it has been lost and found since
		return
	}
	select {
	case <-l.up:
		l.up, l.since = make(chan struct{}), time.Now()
		l.broken <- struct{}{}
	default:
	}
}

// wait waits until there is a server.
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

// Do does a request as soon as there is a server, and again when it was lost on the way.
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

// State gives since when there is no server, and why; a zero time when there is one.
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

// unreachable reports whether err is not the answer of an API server.
func unreachable(err error) bool {
	var status apierrors.APIStatus
	return err != nil && !errors.As(err, &status)
}

// notReady reports whether a server has answered that it is not ready to.
func notReady(err error) bool {
	return apierrors.IsInternalError(err) || apierrors.IsServiceUnavailable(err) || apierrors.IsServerTimeout(err) || apierrors.IsTooManyRequests(err) || apierrors.IsUnexpectedServerError(err)
}
