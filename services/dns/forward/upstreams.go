package forward

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

const (
	// probePause is the pause before the next probe of an upstream that did not answer the last one.
	probePause = time.Second
	// loopRetry is how long an upstream that forwards back to this server is not used.
	loopRetry = 30 * time.Second
	// probeSuffix ends the names of loop probes. No client asks for such a name.
	probeSuffix = ".loop-probe.tapestry."
)

// upstreams are the node's upstreams, and what is known of each.
//
// An upstream counts as working until it does not answer a probe. A probe is a question that every server can answer
// and that no client chooses. An upstream is probed when it has answered nobody while somebody waited. Probes repeat
// until the upstream answers anything. So a name for which no server answers costs only the clients that ask for it.
type upstreams struct {
	opts Options
	ask  func(ctx context.Context, u netip.AddrPort, w way) ([]byte, error)

	failures, broken atomic.Uint64 // probes without an answer; questions while no upstream worked

	mu    sync.Mutex // guards what follows
	state map[netip.AddrPort]*upstream
}

// upstream is what is known of one upstream.
type upstream struct {
	token  string // label of the loop probe sent to it
	looped time.Time

	answered time.Time // its last answer of any kind
	failing  bool      // it did not answer a probe, and has answered nothing since
	probing  bool      // watch is running

	losesCase time.Time // when it last answered in another spelling
}

func newUpstreams(opts Options, ask func(context.Context, netip.AddrPort, way) ([]byte, error)) *upstreams {
	return &upstreams{opts: opts, ask: ask, state: map[netip.AddrPort]*upstream{}}
}

// order returns the upstreams to ask, working ones first. It leaves out those that forward back to this server. It
// also starts the loop probe of each new upstream, which goes on until life ends.
func (f *upstreams) order(life context.Context, now time.Time) []netip.AddrPort {
	if f.opts.Upstreams == nil {
		return nil
	}
	ours := f.opts.Own()
	all := f.opts.Upstreams()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.forget(all)
	var good, bad []netip.AddrPort
	for _, u := range all {
		if slices.Contains(ours, u.Addr()) {
			continue
		}
		st := f.state[u]
		if st == nil || !st.looped.IsZero() && now.Sub(st.looped) >= loopRetry {
			st = &upstream{token: fmt.Sprintf("p%016x", rand.Uint64())}
			f.state[u] = st
			go f.probeLoop(life, u, st.token)
		}
		switch {
		case now.Sub(st.looped) < loopRetry:
		case st.failing:
			bad = append(bad, u)
		default:
			good = append(good, u)
		}
	}
	if len(good) == 0 && len(bad) > 0 {
		f.broken.Add(1)
	}
	return append(good, bad...)
}

// forget drops upstreams that are no longer configured. The caller holds mu.
func (f *upstreams) forget(all []netip.AddrPort) {
	for u := range f.state {
		if !slices.Contains(all, u) {
			delete(f.state, u)
		}
	}
}

// answered records that u has answered something.
func (f *upstreams) answered(u netip.AddrPort) {
	f.mu.Lock()
	st := f.state[u]
	again := st != nil && st.failing
	if st != nil {
		st.answered, st.failing = time.Now(), false
	}
	f.mu.Unlock()
	if again {
		f.opts.Logger.Info("DNS upstream answers again", slog.Any("upstream", u))
	}
}

// doubt starts to probe u if it has answered nothing since the given time, at which it was asked something. Probes go
// on until life ends.
func (f *upstreams) doubt(life context.Context, u netip.AddrPort, since time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	st := f.state[u]
	if st == nil || st.probing || st.answered.After(since) || life.Err() != nil {
		return
	}
	st.probing = true
	go f.watch(life, u, st)
}

// watch probes u until it has answered something.
func (f *upstreams) watch(life context.Context, u netip.AddrPort, st *upstream) {
	began := time.Now()
	for {
		err := f.probe(life, u)
		f.mu.Lock()
		over := err == nil || st.answered.After(began) || f.state[u] != st || life.Err() != nil
		news := !over && !st.failing
		if over {
			st.probing = false
		} else {
			st.failing = true
		}
		f.mu.Unlock()
		if over {
			return
		}
		f.failures.Add(1)
		if news {
			f.opts.Logger.Warn("DNS upstream does not answer", slog.Any("upstream", u), slog.Any("err", err))
		}
		select {
		case <-life.Done():
		case <-time.After(probePause):
		}
	}
}

// probe asks u a question that every server can answer. Any answer will do. Its timeout is half of that for clients'
// questions, so that it ends first.
func (f *upstreams) probe(ctx context.Context, u netip.AddrPort) error {
	return f.send(ctx, u, f.opts.Timeout/2, new(dns.Msg).SetQuestion(".", dns.TypeNS))
}

// probeLoop asks u once for a name that reaches this server only if u forwards to it. The answer does not matter.
func (f *upstreams) probeLoop(ctx context.Context, u netip.AddrPort, token string) {
	_ = f.send(ctx, u, f.opts.Timeout, new(dns.Msg).SetQuestion(token+probeSuffix, dns.TypeHINFO))
}

func (f *upstreams) send(ctx context.Context, u netip.AddrPort, timeout time.Duration, m *dns.Msg) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	q, err := newQuestion(m)
	if err == nil {
		_, err = f.ask(ctx, u, way{question: q})
	}
	return err
}

// isProbe reports whether name is a loop probe of this Forwarder. If so, it stops the use of the upstream that got the
// probe.
func (f *upstreams) isProbe(name string) bool {
	token, ok := strings.CutSuffix(dns.CanonicalName(name), probeSuffix)
	if !ok {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for u, st := range f.state {
		if st.token == token {
			st.looped = time.Now()
			f.opts.Logger.Error("DNS upstream forwards back to this server and is not used; name another upstream",
				slog.Any("upstream", u))
			break
		}
	}
	return true
}

// keepsCase reports whether u is expected to repeat the spelling of a name.
func (f *upstreams) keepsCase(u netip.AddrPort, now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	st := f.state[u]
	return !f.opts.LowerCase && (st == nil || st.losesCase.IsZero() || now.Sub(st.losesCase) >= caseRetry)
}

// losesCase records that u does not repeat the spelling of a name.
func (f *upstreams) losesCase(u netip.AddrPort, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if st := f.state[u]; st != nil {
		st.losesCase = now
	}
}

// working returns the number of known upstreams that work.
func (f *upstreams) working() (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, st := range f.state {
		if !st.failing && st.looped.IsZero() {
			n++
		}
	}
	return n
}
