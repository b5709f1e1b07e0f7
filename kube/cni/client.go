package cni

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/fdpass"
)

// Client talks to the agent whose socket is at Path. Every call makes a connection of its own, so it reaches
// whichever agent listens at that moment.
type Client struct {
	Path string
}

// Add asks the agent to attach a pod. The caller keeps tap, and may close it afterwards.
func (c *Client) Add(ctx context.Context, pod Pod, tap *os.File) error {
	fd, err := fdpass.Dup(tap)
	if err != nil {
		return fmt.Errorf("attach pod %s: %w", &pod, err)
	}
	defer unix.Close(fd)
	_, err = c.call(ctx, request{Op: opAdd, Pod: &pod}, fd)
	return err
}

// Del asks the agent to detach a pod.
func (c *Client) Del(ctx context.Context, pod Pod) error {
	_, err := c.call(ctx, request{Op: opDel, Pod: &pod})
	return err
}

// Status asks the agent whether pods can be attached.
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

// Prepare asks for the addresses, MAC and MTU of a pod: see Allocator.Prepare.
func (c *Client) Prepare(ctx context.Context, want Pod) (Prepared, error) {
	return c.pod(ctx, opPrepare, want)
}

// Check asks for the pod as it was attached. The error wraps ErrNotAttached when it is not attached.
func (c *Client) Check(ctx context.Context, pod Pod) (Pod, error) {
	p, err := c.pod(ctx, opCheck, pod)
	return p.Pod, err
}

func (c *Client) pod(ctx context.Context, op string, pod Pod) (Prepared, error) {
	a, err := c.call(ctx, request{Op: op, Pod: &pod})
	if err != nil {
		return Prepared{}, err
	}
	if a.Pod == nil {
		return Prepared{}, errors.New("the agent answered without a pod")
	}
	return *a.Pod, nil
}

// Collect asks the agent to release all attachments of the network that are not in valid. What does not fit into one
// message is sent ahead, on the same connection: an agent that has not received all of it collects nothing.
func (c *Client) Collect(ctx context.Context, network string, valid []Attachment) error {
	conn, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	for {
		n := pageOf(valid)
		r := request{Op: opValid, Network: network, Valid: valid[:n]}
		if n == len(valid) {
			r.Op = opCollect
		}
		if _, err := exchange(ctx, conn, r); err != nil || r.Op == opCollect {
			return err
		}
		valid = valid[n:]
	}
}

// pageSize is how many bytes of attachments, as JSON, one message holds. It leaves room for the rest of the request.
const pageSize = fdpass.MaxMessage / 2

// pageOf returns how many attachments at the beginning of list fit one page; at least one, when there are any.
func pageOf(list []Attachment) int {
	size := 0
	for i := range list {
		// JSON may need six bytes for one byte of a name.
		if size += len(`{"containerID":"","ifname":""},`) + 6*len(list[i].ContainerID) + 6*len(list[i].IfName); size > pageSize && i > 0 {
			return i
		}
	}
	return len(list)
}

func (c *Client) dial(ctx context.Context) (*fdpass.Conn, error) {
	conn, err := fdpass.Dial(ctx, c.Path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return conn, nil
}

func (c *Client) call(ctx context.Context, r request, fds ...int) (answer, error) {
	conn, err := c.dial(ctx)
	if err != nil {
		return answer{}, err
	}
	defer conn.Close()
	return exchange(ctx, conn, r, fds...)
}

func exchange(ctx context.Context, conn *fdpass.Conn, r request, fds ...int) (answer, error) {
	var a answer
	got, err := conn.Call(ctx, r, &a, fds...)
	fdpass.CloseAll(got)
	switch {
	case err != nil && ctx.Err() == nil: // the agent went away during the call
		return answer{}, fmt.Errorf("%w: %s: %w", ErrUnavailable, r.Op, err)
	case err != nil:
		return answer{}, fmt.Errorf("ask the agent to %s: %w", r.Op, err)
	case a.Error != "":
		return answer{}, &remoteError{a.Error, kinds[a.Kind]}
	}
	return a, nil
}

// remoteError is an error that the agent returned.
type remoteError struct {
	message string
	kind    error // one of kinds, or nil
}

func (e *remoteError) Error() string { return e.message }
func (e *remoteError) Unwrap() error { return e.kind }
