package cni

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"tapestry.dev/tapestry/fdpass"
)

// The requests of the protocol.
const (
	opAdd     = "add"
	opDel     = "del"
	opStatus  = "status"
	opPrepare = "prepare"
	opCheck   = "check"
	opCollect = "gc"
	// opValid carries valid attachments ahead of the opCollect that follows on the same connection. It is a request
	// of its own, so that an agent which does not know it refuses and collects nothing.
	opValid = "gc-valid"
)

// maxValid limits the attachments that the agent remembers for a client. It is far more than one node has.
const maxValid = 1 << 17

type request struct {
	Op  string `json:"op"`
	Pod *Pod   `json:"pod,omitempty"`
	// Network and Valid belong to gc and gc-valid.
	Network string       `json:"network,omitempty"`
	Valid   []Attachment `json:"valid,omitempty"`
}

type answer struct {
	Error string `json:"error,omitempty"`
	// Kind is the key in kinds of the error that the error wraps.
	Kind   string    `json:"kind,omitempty"`
	Status *Status   `json:"status,omitempty"`
	Pod    *Prepared `json:"pod,omitempty"`
}

var kinds = map[string]error{"try-later": ErrTryLater, "not-attached": ErrNotAttached}

func kindOf(err error) string {
	for kind, target := range kinds {
		if errors.Is(err, target) {
			return kind
		}
	}
	return ""
}

// addTime limits each request. kubelet gives a CNI plugin more time.
const addTime = 30 * time.Second

// Options say which users may connect, and where refused ones are logged.
type Options = fdpass.Options

// Listen makes the attach socket at path, for this user only. It replaces the socket of an agent that died.
func Listen(path string) (*net.UnixListener, error) { return fdpass.Listen(path, 0o600) }

// Server answers on the socket.
type Server struct {
	Attacher Attacher
	// Allocator may be nil, for an agent whose pods come with their addresses.
	Allocator Allocator
	Options   Options
}

// Serve answers clients on ln, which Listen made, until ctx is done. It returns after the last call of the Attacher
// has returned.
func (s *Server) Serve(ctx context.Context, ln *net.UnixListener) error {
	return fdpass.Serve(ctx, ln, s.Options, s.serve)
}

func (s *Server) serve(ctx context.Context, c *fdpass.Conn) {
	var before pages
	for {
		var r request
		fds, err := c.Receive(&r)
		if err != nil {
			if errors.Is(err, fdpass.ErrBad) {
				c.Answer(answer{Error: err.Error()})
			}
			return
		}
		err = before.add(&r)
		var a answer
		if err != nil {
			fdpass.CloseAll(fds)
		} else {
			a, err = s.answer(ctx, &r, fds)
		}
		if err != nil {
			a.Error, a.Kind = err.Error(), kindOf(err)
		}
		if c.Answer(a) != nil {
			return
		}
	}
}

// pages holds the valid attachments received ahead of a connection's next opCollect.
type pages struct {
	network string
	valid   []Attachment
}

// add keeps the attachments of an opValid, and adds the kept ones to the opCollect that follows.
func (p *pages) add(r *request) error {
	if r.Op != opValid && r.Op != opCollect {
		return nil
	}
	before := *p
	*p = pages{}
	switch {
	case len(before.valid) > 0 && r.Network != before.network:
		return fmt.Errorf("%s: network %q was named, and %q before", r.Op, r.Network, before.network)
	case len(before.valid)+len(r.Valid) > maxValid:
		return fmt.Errorf("%s: more than %d valid attachments", r.Op, maxValid)
	case r.Op == opValid:
		*p = pages{r.Network, append(before.valid, r.Valid...)}
	default:
		r.Valid = append(before.valid, r.Valid...)
	}
	return nil
}

// answer executes r. It takes ownership of the descriptors.
func (s *Server) answer(ctx context.Context, r *request, fds []int) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, addTime)
	defer cancel()
	if r.Op == opAdd {
		return answer{}, s.add(ctx, r.Pod, fds)
	}
	fdpass.CloseAll(fds)
	switch r.Op {
	case opDel:
		if r.Pod == nil {
			return answer{}, errors.New("detach: no pod was named")
		}
		if err := r.Pod.checkNamed(); err != nil {
			return answer{}, fmt.Errorf("detach: %w", err)
		}
		if err := s.Attacher.Del(ctx, *r.Pod); err != nil {
			return answer{}, fmt.Errorf("detach pod %s: %w", r.Pod, err)
		}
		return answer{}, nil
	case opStatus:
		st, err := s.Attacher.Status(ctx)
		return answer{Status: &st}, err
	}
	if s.Allocator == nil {
		return answer{}, fmt.Errorf("unknown request %q", r.Op)
	}
	return s.answerAllocator(ctx, r)
}

func (s *Server) answerAllocator(ctx context.Context, r *request) (answer, error) {
	switch r.Op {
	case opPrepare, opCheck:
		if r.Pod == nil {
			return answer{}, fmt.Errorf("%s: no pod was named", r.Op)
		}
		if err := r.Pod.checkAttachment(); err != nil {
			return answer{}, fmt.Errorf("%s: %w", r.Op, err)
		}
		var p Prepared
		var err error
		if r.Op == opPrepare {
			p, err = s.Allocator.Prepare(ctx, *r.Pod)
		} else {
			p.Pod, err = s.Allocator.Check(ctx, *r.Pod)
		}
		if err != nil {
			return answer{}, fmt.Errorf("%s pod %s: %w", r.Op, r.Pod, err)
		}
		return answer{Pod: &p}, nil
	case opValid:
		return answer{}, nil // the attachments are in pages
	case opCollect:
		if r.Network == "" {
			return answer{}, errors.New("gc: no network was named")
		}
		return answer{}, s.Allocator.Collect(ctx, r.Network, r.Valid)
	}
	return answer{}, fmt.Errorf("unknown request %q", r.Op)
}

func (s *Server) add(ctx context.Context, pod *Pod, fds []int) error {
	if pod == nil {
		fdpass.CloseAll(fds)
		return errors.New("attach: no pod was described")
	}
	err := pod.check()
	if err == nil && len(fds) != 1 {
		err = fmt.Errorf("expected the descriptor of one TAP, got %d descriptors", len(fds))
	}
	if err != nil {
		fdpass.CloseAll(fds)
		return fmt.Errorf("attach pod %s: %w", pod, err)
	}
	tap := os.NewFile(uintptr(fds[0]), "tap of "+pod.String())
	if err := s.Attacher.Add(ctx, *pod, tap); err != nil {
		tap.Close()
		return fmt.Errorf("attach pod %s: %w", pod, err)
	}
	return nil
}
