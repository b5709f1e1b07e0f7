package keeper

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/fdpass"
)

// Limits of what is kept.
const (
	// MaxKey is the longest key in bytes.
	MaxKey = 256
	// MaxMeta is the longest meta in bytes.
	MaxMeta = 16 << 10
	// maxItems bounds what a broken client can make the keeper hold.
	maxItems = 16384
)

// ErrNotFound says that nothing is kept under a key.
var ErrNotFound = errors.New("nothing is kept under this key")

// Item is one kept descriptor.
type Item struct {
	Key string
	// Meta is the meta that was given to Put: JSON that means nothing to the keeper.
	Meta json.RawMessage
	// File is a duplicate, close-on-exec. It belongs to whoever got the Item.
	File *os.File
}

// kept is one kept descriptor. It is a plain one: an os.File of a TAP would be registered with this process's poller,
// and every packet would wake it.
type kept struct {
	meta json.RawMessage
	fd   int
}

// Keeper holds descriptors. Its methods are safe for concurrent use.
type Keeper struct {
	mu      sync.Mutex
	items   map[string]kept
	shelves map[string]*shelf
	most    uint32       // on each shelf
	holder  *fdpass.Conn // the client that has the lease
	node    string       // the node whose agent the holder is, as it said
}

// New makes an empty Keeper.
func New() *Keeper {
	return &Keeper{items: map[string]kept{}, shelves: map[string]*shelf{}, most: shelfMost()}
}

// Close closes everything that is kept.
func (k *Keeper) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, it := range k.items {
		unix.Close(it.fd)
	}
	clear(k.items)
	k.dropShelves()
	return nil
}

// Put keeps a duplicate of f in place of what was under key. f stays the caller's.
func (k *Keeper) Put(key string, meta json.RawMessage, f *os.File) error {
	fd, err := fdpass.Dup(f)
	if err != nil {
		return fmt.Errorf("keep %q: %w", key, err)
	}
	if err := k.put(key, meta, fd); err != nil {
		unix.Close(fd)
		return fmt.Errorf("keep %q: %w", key, err)
	}
	return nil
}

// put takes over fd unless it fails.
func (k *Keeper) put(key string, meta json.RawMessage, fd int) error {
	if err := checkItem(key, meta); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	old, replaces := k.items[key]
	if !replaces && len(k.items) >= maxItems {
		return fmt.Errorf("%d descriptors are kept already, which is the limit", maxItems)
	}
	k.items[key] = kept{slices.Clone(meta), fd}
	if replaces {
		unix.Close(old.fd)
	}
	return nil
}

func checkItem(key string, meta json.RawMessage) error {
	switch {
	case key == "":
		return errors.New("the key is empty")
	case len(key) > MaxKey:
		return fmt.Errorf("the key has %d bytes, at most %d are allowed", len(key), MaxKey)
	case !utf8.ValidString(key):
		return errors.New("the key is not UTF-8")
	case len(meta) > MaxMeta:
		return fmt.Errorf("the meta has %d bytes, at most %d are allowed", len(meta), MaxMeta)
	case len(meta) > 0 && !json.Valid(meta):
		return errors.New("the meta is not JSON")
	}
	return nil
}

// Get returns what is kept under key. The error wraps ErrNotFound when there is nothing.
func (k *Keeper) Get(key string) (Item, error) {
	items, fds, err := k.dup([]string{key})
	if err != nil {
		return Item{}, fmt.Errorf("get %q: %w", key, err)
	}
	return withFiles(items, fds)[0], nil
}

// List returns everything that is kept, sorted by key.
func (k *Keeper) List() ([]Item, error) {
	var list []Item
	for after, more := "", true; more; {
		var items []Item
		var fds []int
		var err error
		if items, fds, more, err = k.page(after); err != nil {
			closeItems(list)
			return nil, fmt.Errorf("list: %w", err)
		}
		list = append(list, withFiles(items, fds)...)
		if more {
			after = items[len(items)-1].Key
		}
	}
	return list, nil
}

// Delete closes what is kept under key, if anything.
func (k *Keeper) Delete(key string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if it, ok := k.items[key]; ok {
		delete(k.items, key)
		unix.Close(it.fd)
	}
}

// dropSockets drops the sockets that only agents which take them over need (Sockets).
func (k *Keeper) dropSockets() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for key, it := range k.items {
		if strings.HasPrefix(key, SocketPrefix) {
			delete(k.items, key)
			unix.Close(it.fd)
		}
	}
}

// page returns the next items after a key, as many as fit into one message, with their duplicates.
func (k *Keeper) page(after string) (items []Item, fds []int, more bool, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	keys := slices.Sorted(maps.Keys(k.items))
	from, found := slices.BinarySearchFunc(keys, after, cmp.Compare[string])
	if found {
		from++
	}
	size, n := 0, 0
	for _, key := range keys[from:] {
		// JSON may escape a byte of the key to six bytes, and needs some for the names of fields.
		size += len(k.items[key].meta) + 6*len(key) + 64
		if n == fdpass.MaxFiles || size > fdpass.MaxMessage-1024 {
			break
		}
		n++
	}
	items, fds, err = k.dupLocked(keys[from : from+n])
	return items, fds, from+n < len(keys), err
}

func (k *Keeper) dup(keys []string) ([]Item, []int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.dupLocked(keys)
}

func (k *Keeper) dupLocked(keys []string) (items []Item, fds []int, err error) {
	for _, key := range keys {
		it, ok := k.items[key]
		if !ok {
			err = ErrNotFound
			break
		}
		var fd int
		if fd, err = unix.FcntlInt(uintptr(it.fd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
			break
		}
		fds, items = append(fds, fd), append(items, Item{Key: key, Meta: it.meta})
	}
	if err != nil {
		fdpass.CloseAll(fds)
		return nil, nil, err
	}
	return items, fds, nil
}

func withFiles(items []Item, fds []int) []Item {
	for i := range items {
		items[i].File = os.NewFile(uintptr(fds[i]), items[i].Key)
	}
	return items
}

func closeItems(items []Item) {
	for _, it := range items {
		it.File.Close()
	}
}

// claim gives the lease to c.
func (k *Keeper) claim(c *fdpass.Conn, node string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	// The kernel closes a killed agent's sockets before its parent learns of its death, but the goroutine that reads
	// the socket here may not have run since.
	if k.holder != nil && k.holder != c && !k.holder.Gone() {
		return leased{fmt.Sprintf("an agent for node %s %s (pid %d); stop it first", k.node, leasedText, k.holder.Peer().PID)}
	}
	k.holder, k.node = c, node
	return nil
}

func (k *Keeper) release(c *fdpass.Conn) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.holder == c {
		k.holder, k.node = nil, ""
	}
}
