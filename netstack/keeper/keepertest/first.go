// Package keepertest plays keepers and agents of the first version of the keeper's protocol, as that was: a later
// version of either must get along with them.
package keepertest

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/fdpass"
)

// request and answer are the messages of the first version. It knew the requests claim, put, get, list and delete.
type request struct {
	Op   string          `json:"op"`
	Node string          `json:"node,omitempty"`
	Key  string          `json:"key,omitempty"`
	Meta json.RawMessage `json:"meta,omitempty"`
}

type answer struct {
	Error    string `json:"error,omitempty"`
	NotFound bool   `json:"notFound,omitempty"`
	Items    []item `json:"items,omitempty"`
	More     bool   `json:"more,omitempty"`
}

type item struct {
	Key  string          `json:"key"`
	Meta json.RawMessage `json:"meta,omitempty"`
}

// pageSize is how many descriptors a keeper lists at once.
const pageSize = 100

// first is a keeper of the first version.
type first struct {
	mu     sync.Mutex // guards what follows
	items  map[string]held
	holder *fdpass.Conn // has the lease
	node   string
}

type held struct {
	meta json.RawMessage
	fd   int
}

// Serve is a keeper of the first version at the socket path, until ctx ends.
func Serve(ctx context.Context, path string) error {
	ln, err := fdpass.Listen(path, 0o600)
	if err != nil {
		return err
	}
	k := &first{items: map[string]held{}}
	return fdpass.Serve(ctx, ln, fdpass.Options{Log: slog.Default()}, k.serve)
}

func (k *first) serve(_ context.Context, c *fdpass.Conn) {
	defer func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if k.holder == c {
			k.holder, k.node = nil, ""
		}
	}()
	for {
		var r request
		fds, err := c.Receive(&r)
		if err != nil {
			return
		}
		a, out := k.answer(c, &r, fds)
		err = c.Answer(a, out...)
		fdpass.CloseAll(out)
		if err != nil {
			return
		}
	}
}

// answer does what r asks for. It takes over fds, and the caller closes those that it returns.
func (k *first) answer(c *fdpass.Conn, r *request, fds []int) (a answer, out []int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if r.Op == "put" && len(fds) == 1 {
		k.drop(r.Key)
		k.items[r.Key] = held{r.Meta, fds[0]}
		return a, nil
	}
	defer fdpass.CloseAll(fds)
	switch r.Op {
	case "put":
		a.Error = fmt.Sprintf("put needs one descriptor, got %d", len(fds))
	case "claim":
		if k.holder != nil && k.holder != c && !k.holder.Gone() {
			a.Error = fmt.Sprintf("an agent for node %s is already running (pid %d); stop it first", k.node, k.holder.Peer().PID)
			break
		}
		k.holder, k.node = c, r.Node
	case "get":
		if _, there := k.items[r.Key]; !there {
			return answer{Error: "nothing is kept under this key", NotFound: true}, nil
		}
		out = k.list(&a, []string{r.Key})
	case "list":
		keys := slices.Sorted(maps.Keys(k.items))
		from, found := slices.BinarySearchFunc(keys, r.Key, cmp.Compare[string])
		if found {
			from++
		}
		keys = keys[from:]
		a.More = len(keys) > pageSize
		out = k.list(&a, keys[:min(len(keys), pageSize)])
	case "delete":
		k.drop(r.Key)
	default:
		a.Error = fmt.Sprintf("unknown request %q", r.Op)
	}
	return a, out
}

// list adds what is kept under keys to a, and returns duplicates of the descriptors. The caller holds mu.
func (k *first) list(a *answer, keys []string) (fds []int) {
	for _, key := range keys {
		fd, err := unix.FcntlInt(uintptr(k.items[key].fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			fdpass.CloseAll(fds)
			*a = answer{Error: err.Error()}
			return nil
		}
		a.Items, fds = append(a.Items, item{key, k.items[key].meta}), append(fds, fd)
	}
	return fds
}

func (k *first) drop(key string) {
	if it, there := k.items[key]; there {
		unix.Close(it.fd)
		delete(k.items, key)
	}
}

// Claim claims a node from the keeper at path, as an agent of the first version, and has the lease until release is
// called. keys are those of what the keeper has for such an agent.
func Claim(ctx context.Context, path, node string) (keys []string, release func(), err error) {
	c, err := fdpass.Dial(ctx, path)
	if err != nil {
		return nil, nil, err
	}
	call := func(r request) (a answer, err error) {
		fds, err := c.Call(ctx, r, &a)
		fdpass.CloseAll(fds)
		if err == nil && a.Error != "" {
			err = errors.New(a.Error)
		}
		return a, err
	}
	_, err = call(request{Op: "claim", Node: node})
	for more := true; more && err == nil; {
		var a answer
		r := request{Op: "list"}
		if n := len(keys); n > 0 {
			r.Key = keys[n-1]
		}
		a, err = call(r)
		for _, it := range a.Items {
			keys = append(keys, it.Key)
		}
		more = a.More
	}
	if err != nil {
		_ = c.Close()
		return nil, nil, err
	}
	return keys, func() { _ = c.Close() }, nil
}
