package hubble

import (
	"context"
	"time"

	"tapestry.dev/tapestry/hubble/rpc"
)

// getFlows answers an observer.GetFlowsRequest.
func (s *Server) getFlows(ctx context.Context, request []byte, out *rpc.Stream) error {
	q, err := parse(request)
	if err != nil {
		return err
	}
	past := !q.follow || q.number > 0 || !q.since.IsZero()
	a := &asked{query: q, out: out, node: s.o.Node, reader: s.o.Source.Read(past)}
	if past {
		if err := a.past(ctx, s.most()); err != nil {
			return err
		}
		a.known = a.reader.Lost() // nobody was to read that
	}
	if !q.follow {
		return nil
	}
	if err := out.Flush(); err != nil { // the client waits for the header
		return err
	}
	return a.follow(ctx)
}

// asked is a request of GetFlows on its way.
type asked struct {
	*query
	out    *rpc.Stream
	node   string
	reader Reader
	known  uint64 // lost events that the client knows of, or need not know of
	buf    message
}

// past sends the events that are there: all, or the first or last number of them. most is how many there can be.
func (a *asked) past(ctx context.Context, most uint64) error {
	first, sent := a.first && a.number > 0, uint64(0)
	last := !a.first && a.number > 0
	var kept []Flow // the last ones so far; the oldest is at position at
	at := 0
	for range most {
		f, ok := a.reader.Next()
		if !ok || ctx.Err() != nil || a.over(f.Time) {
			break
		}
		switch {
		case f.Time.Before(a.since) || !a.admits(&f):
		case last && uint64(len(kept)) < a.number:
			kept = append(kept, f)
		case last:
			kept[at] = f
			at = (at + 1) % len(kept)
		default:
			if err := a.send(&f); err != nil {
				return err
			}
			if sent++; first && sent == a.number {
				return nil
			}
		}
	}
	for i := range kept {
		if err := a.send(&kept[(at+i)%len(kept)]); err != nil {
			return err
		}
	}
	return nil
}

// over reports whether a time is after those that are asked for.
func (a *asked) over(t time.Time) bool { return !a.until.IsZero() && t.After(a.until) }

// follow sends events as they come, until ctx ends or the time that was asked for is over.
func (a *asked) follow(ctx context.Context) error {
	if !a.until.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, a.until)
		defer cancel()
	}
	for {
		f, ok := a.reader.Next()
		if !ok {
			if err := a.out.Flush(); err != nil {
				return err
			}
			if f, ok = a.reader.Wait(ctx); !ok {
				return nil
			}
		}
		if a.over(f.Time) {
			return nil
		}
		if err := a.tellLost(); err != nil {
			return err
		}
		if f.Time.Before(a.since) || !a.admits(&f) {
			continue
		}
		if err := a.send(&f); err != nil {
			return err
		}
	}
}

// send sends a GetFlowsResponse with an event.
func (a *asked) send(f *Flow) error {
	a.buf = a.buf[:0]
	a.buf.flow(1, f)
	a.buf.text(1000, f.Node)
	a.buf.time(1001, f.Time)
	return a.out.Send(a.buf)
}

// tellLost sends a GetFlowsResponse with a flow.LostEvent, if events were lost since the last one.
func (a *asked) tellLost() error {
	const ofRing = 3
	lost := a.reader.Lost()
	if lost == a.known {
		return nil
	}
	a.buf = a.buf[:0]
	a.buf.inside(3, func(m *message) {
		m.number(1, ofRing)
		m.number(2, lost-a.known)
	})
	a.buf.text(1000, a.node)
	a.buf.time(1001, time.Now())
	a.known = lost
	return a.out.Send(a.buf)
}
