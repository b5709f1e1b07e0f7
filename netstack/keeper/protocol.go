package keeper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/fdpass"
)

// The requests.
const (
	opClaim  = "claim"
	opPut    = "put"
	opGet    = "get"
	opList   = "list"
	opDelete = "delete"
	opShelf  = "shelf"  // use a shelf, and list what is on it
	opShelve = "shelve" // change what is on it; has no answer
)

type request struct {
	Op   string          `json:"op"`
	Node string          `json:"node,omitempty"`
	Key  string          `json:"key,omitempty"` // of list: the last key of the page before
	Meta json.RawMessage `json:"meta,omitempty"`
	// Sockets, of claim: the agent takes over sockets of the host (Sockets). Agents of earlier versions do not, and
	// could not open them while somebody has them.
	Sockets bool `json:"sockets,omitempty"`
	// Shelves, of claim: the agent goes on with what is on the shelves. Agents of earlier versions do not.
	Shelves bool `json:"shelves,omitempty"`
	// From, of shelf: the smallest number that is asked for. Slots and Drop, of shelve: the numbers of the descriptors
	// that come, and those that are dropped first.
	From  uint32   `json:"from,omitempty"`
	Slots []uint32 `json:"slots,omitempty"`
	Drop  []uint32 `json:"drop,omitempty"`
}

// answer is sent with one descriptor for each item, in order.
type answer struct {
	Error    string       `json:"error,omitempty"`
	NotFound bool         `json:"notFound,omitempty"`
	Leased   bool         `json:"leased,omitempty"`
	Items    []answerItem `json:"items,omitempty"`
	More     bool         `json:"more,omitempty"`
	// Shelf says that this answers shelf. Slots are the numbers of the descriptors, Most is above every number.
	Shelf bool     `json:"shelf,omitempty"`
	Slots []uint32 `json:"slots,omitempty"`
	Most  uint32   `json:"most,omitempty"`
}

type answerItem struct {
	Key  string          `json:"key"`
	Meta json.RawMessage `json:"meta,omitempty"`
}

// Options are the choices for Serve.
type Options = fdpass.Options

// Listen makes the keeper's socket at path, which only this user may use. It replaces the socket of a keeper that has
// ended.
func Listen(path string) (*net.UnixListener, error) { return fdpass.Listen(path, 0o600) }

// Serve answers clients on ln, which Listen made, until ctx ends. What is kept stays kept.
func (k *Keeper) Serve(ctx context.Context, ln *net.UnixListener, o Options) error {
	return fdpass.Serve(ctx, ln, o, k.serve)
}

func (k *Keeper) serve(_ context.Context, c *fdpass.Conn) {
	var err error
	defer func() { k.unuse(c, errors.Is(err, net.ErrClosed)) }() // otherwise the other end has closed
	defer k.release(c)
	for {
		var r request
		var fds []int
		if fds, err = c.Receive(&r); err != nil {
			if errors.Is(err, fdpass.ErrBad) {
				c.Answer(answer{Error: err.Error()})
			}
			return
		}
		if r.Op == opShelve {
			_ = c.Quiet() // whoever puts something there goes on to do so; without it the same costs more
			k.shelve(c, &r, fds)
			if !c.More() {
				<-time.After(restTime)
			}
			continue
		}
		a, out := k.answer(c, &r, fds)
		err = c.Answer(a, out...)
		fdpass.CloseAll(out)
		if err != nil {
			return
		}
	}
}

// answer does what r asks for. It takes over the descriptors. The caller closes those in out.
func (k *Keeper) answer(c *fdpass.Conn, r *request, fds []int) (a answer, out []int) {
	var items []Item
	err := func() (err error) {
		if r.Op == opPut {
			return k.answerPut(r, fds)
		}
		defer fdpass.CloseAll(fds)
		switch r.Op {
		case opClaim:
			if err = k.claim(c, r.Node); err == nil {
				k.dropOthers(r)
			}
			return err
		case opShelf:
			a.Shelf, a.Most = true, k.most
			var s *shelf
			if s, err = k.use(c, r.Key); err == nil {
				a.Slots, out, a.More, err = k.shelfPage(s, r.From)
			}
			return err
		case opGet:
			items, out, err = k.dup([]string{r.Key})
			return err
		case opList:
			items, out, a.More, err = k.page(r.Key)
			return err
		case opDelete:
			k.Delete(r.Key)
			return nil
		}
		return fmt.Errorf("unknown request %q", r.Op)
	}()
	if err != nil {
		return answer{Error: err.Error(), NotFound: errors.Is(err, ErrNotFound), Leased: errors.Is(err, ErrLeased), Shelf: a.Shelf}, nil
	}
	for _, it := range items {
		a.Items = append(a.Items, answerItem{it.Key, it.Meta})
	}
	return a, out
}

// dropOthers drops what the agent that has made the claim r does not know.
func (k *Keeper) dropOthers(r *request) {
	if !r.Sockets {
		k.dropSockets()
	}
	if !r.Shelves {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.dropShelves()
	}
}

func (k *Keeper) answerPut(r *request, fds []int) error {
	err := fmt.Errorf("put needs one descriptor, got %d", len(fds))
	if len(fds) == 1 {
		err = k.put(r.Key, r.Meta, fds[0])
	}
	if err != nil {
		fdpass.CloseAll(fds)
	}
	return err
}

// callTime is how long the keeper may take to answer.
const callTime = 10 * time.Second

// Client is a connection to a Keeper. Its methods are safe for concurrent use. After the connection has failed, every
// call fails.
type Client struct {
	mu   sync.Mutex
	conn *fdpass.Conn
}

// Dial connects to the keeper at path.
func Dial(ctx context.Context, path string) (*Client, error) {
	c, err := fdpass.Dial(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("connect to the keeper: %w", err)
	}
	return &Client{conn: c}, nil
}

// Close ends the connection, and with it the lease. What was put stays.
func (c *Client) Close() error { return c.conn.Close() }

// Claim claims the lease of the agent of a node. While another agent has it, the claim is refused with an error that
// names that process and wraps ErrLeased. The lease lasts until the connection is closed, also by the end of the
// process.
func (c *Client) Claim(ctx context.Context, node string) error {
	_, _, err := c.call(ctx, request{Op: opClaim, Node: node, Sockets: true, Shelves: true})
	return err
}

// Put makes the keeper hold a duplicate of f in place of what was under key. When it returns nil, the keeper has it. f
// stays the caller's. meta is JSON or empty.
func (c *Client) Put(key string, meta json.RawMessage, f *os.File) error {
	err := checkItem(key, meta)
	if err != nil {
		return fmt.Errorf("keep %q: %w", key, err)
	}
	fd, err := fdpass.Dup(f)
	if err != nil {
		return fmt.Errorf("keep %q: %w", key, err)
	}
	defer unix.Close(fd)
	if _, _, err := c.call(context.Background(), request{Op: opPut, Key: key, Meta: meta}, fd); err != nil {
		return fmt.Errorf("keep %q: %w", key, err)
	}
	return nil
}

// Get returns what is kept under key. The error wraps ErrNotFound when there is nothing.
func (c *Client) Get(key string) (Item, error) {
	items, _, err := c.call(context.Background(), request{Op: opGet, Key: key})
	if err != nil {
		return Item{}, fmt.Errorf("get %q from the keeper: %w", key, err)
	}
	if len(items) != 1 {
		closeItems(items)
		return Item{}, fmt.Errorf("get %q from the keeper: got %d items", key, len(items))
	}
	return items[0], nil
}

// List returns everything that is kept, sorted by key.
func (c *Client) List() ([]Item, error) {
	var list []Item
	for after, more := "", true; more; {
		items, m, err := c.call(context.Background(), request{Op: opList, Key: after})
		if more = m && len(items) > 0; more {
			after = items[len(items)-1].Key
		}
		list = append(list, items...)
		if err != nil {
			closeItems(list)
			return nil, fmt.Errorf("list what the keeper holds: %w", err)
		}
	}
	return list, nil
}

// Delete makes the keeper close what is under key, if anything.
func (c *Client) Delete(key string) error {
	_, _, err := c.call(context.Background(), request{Op: opDelete, Key: key})
	return err
}

func (c *Client) call(ctx context.Context, r request, fds ...int) (items []Item, more bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	c.mu.Lock()
	defer c.mu.Unlock()
	var a answer
	got, err := c.conn.Call(ctx, r, &a, fds...)
	switch {
	case err != nil:
		return nil, false, err
	case a.NotFound:
		err = ErrNotFound
	case a.Leased || r.Op == opClaim && strings.Contains(a.Error, leasedText):
		err = leased{a.Error}
	case a.Error != "":
		err = errors.New(a.Error)
	case len(got) != len(a.Items):
		err = fmt.Errorf("the keeper sent %d descriptors for %d items", len(got), len(a.Items))
	}
	if err != nil {
		fdpass.CloseAll(got)
		return nil, false, err
	}
	for i, it := range a.Items {
		items = append(items, Item{it.Key, it.Meta, os.NewFile(uintptr(got[i]), it.Key)})
	}
	return items, a.More, nil
}
