package cni

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/keeper/fdpass"
)

// The requests.
const (
	opAdd    = "add"
	opDel    = "del"
	opStatus = "status"
	opStats  = "stats"
	opDetail = "detail"
)

type request struct {
	Op  string `json:"op"`
	Pod *Pod   `json:"pod,omitempty"`
}

type answer struct {
	Error  string  `json:"error,omitempty"`
	Status *Status `json:"status,omitempty"`
	Stats  *Stats  `json:"stats,omitempty"`
	Detail *Detail `json:"detail,omitempty"`
}

// addTime is how long an Attacher may take; kubelet gives a CNI plugin longer.
const addTime = 30 * time.Second

// Options say which users may connect, and where refused ones are logged.
type Options = fdpass.Options

// Listen makes the agent's socket at path, for this user only; that of an agent that died is replaced.
func Listen(path string) (*net.UnixListener, error) { return fdpass.Listen(path) }

// Server answers on the agent's socket.
type Server struct {
	Attacher Attacher
	// Detail tells people about the node; it may take seconds. Nil: they are told that this agent cannot.
	Detail  func(context.Context) (Detail, error)
	Options Options
}

// Serve answers clients on ln, which Listen made, until ctx is done. It returns when the last call of the Attacher has.
func (s *Server) Serve(ctx context.Context, ln *net.UnixListener) error {
	return fdpass.Serve(ctx, ln, s.Options, s.serve)
}

func (s *Server) serve(ctx context.Context, c *fdpass.Conn) {
	for {
		var r request
		fds, err := c.Receive(&r)
		if err != nil {
			if errors.Is(err, fdpass.ErrBad) {
				c.Answer(answer{Error: err.Error()})
			}
			return
		}
		a, err := s.answer(ctx, &r, fds)
		if err != nil {
			a.Error = err.Error()
		}
		if c.Answer(a) != nil {
			return
		}
	}
}

// answer does what r asks for. It takes the descriptors over.
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
		if err := r.Pod.checkNames(); err != nil {
			return answer{}, fmt.Errorf("detach: %w", err)
		}
		if err := s.Attacher.Del(ctx, *r.Pod); err != nil {
			return answer{}, fmt.Errorf("detach pod %s: %w", r.Pod, err)
		}
		return answer{}, nil
	case opStatus:
		st, err := s.Attacher.Status(ctx)
		return answer{Status: &st}, err
	case opStats:
		st, err := s.Attacher.Stats(ctx)
		return answer{Stats: &st}, err
	case opDetail:
		if s.Detail == nil {
			break
		}
		d, err := s.Detail(ctx)
		return answer{Detail: &d}, err
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

// Client speaks to the agent whose socket is at Path. Every call makes its own connection, so that it serves any agent that
// is there.
type Client struct {
	Path string
}

// Add has the agent attach a pod. tap stays the caller's, who may close it afterwards.
func (c *Client) Add(ctx context.Context, pod Pod, tap *os.File) error {
	fd, err := fdpass.Dup(tap)
	if err != nil {
		return fmt.Errorf("attach pod %s: %w", &pod, err)
	}
	defer unix.Close(fd)
	_, err = c.call(ctx, request{opAdd, &pod}, fd)
	return err
}

// Del has the agent detach a pod.
func (c *Client) Del(ctx context.Context, pod Pod) error {
	_, err := c.call(ctx, request{opDel, &pod})
	return err
}

// Status asks the agent how it is.
func (c *Client) Status(ctx context.Context) (Status, error) {
	a, err := c.call(ctx, request{Op: opStatus})
	if err != nil {
		return Status{}, err
	}
	if a.Status == nil {
		return Status{}, errors.New("the agent answered without a status")
	}
	return *a.Status, nil
}

// Stats asks the agent what it holds and has counted.
func (c *Client) Stats(ctx context.Context) (Stats, error) {
	a, err := c.call(ctx, request{Op: opStats})
	if err != nil {
		return Stats{}, err
	}
	if a.Stats == nil {
		return Stats{}, errors.New("the agent answered without its stats")
	}
	return *a.Stats, nil
}

// Detail asks the agent about its node, for people.
func (c *Client) Detail(ctx context.Context) (Detail, error) {
	a, err := c.call(ctx, request{Op: opDetail})
	if err != nil {
		return Detail{}, err
	}
	if a.Detail == nil {
		return Detail{}, errors.New("the agent answered without the detail")
	}
	return *a.Detail, nil
}

func (c *Client) call(ctx context.Context, r request, fds ...int) (answer, error) {
	conn, err := fdpass.Dial(ctx, c.Path)
	if err != nil {
		return answer{}, fmt.Errorf("connect to the agent: %w", err)
	}
	defer conn.Close()
	var a answer
	got, err := conn.Call(ctx, r, &a, fds...)
	fdpass.CloseAll(got)
	if err != nil {
		return answer{}, fmt.Errorf("ask the agent to %s: %w", r.Op, err)
	}
	if a.Error != "" {
		return answer{}, errors.New(a.Error)
	}
	return a, nil
}
