package keeper

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/fdpass"
)

// shelf holds the sockets of many short-lived things under numbers that their agent gives them. The agent does not wait
// for answers, since a message that was sent arrives also when the agent ends.
type shelf struct {
	fds   map[uint32]int
	top   uint32        // above every number that was used
	user  *fdpass.Conn  // the agent's connection for this shelf; nil: none
	lives bool          // without user: the user before was cut off by this keeper, and has not ended
	ended chan struct{} // closed when all that user has sent was handled
}

// shelfMost is how many sockets a shelf holds at most, and their numbers are below it: a quarter of what this process
// may open.
func shelfMost() uint32 {
	var lim unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &lim) != nil {
		return 256
	}
	return uint32(min(lim.Cur, 1<<21) / 4)
}

// maxShelves is how many shelves there are at most: an agent has one for TCP and one for UDP.
const maxShelves = 2

// drainTime is how long the next user of a shelf waits until what the one before has sent was handled.
const drainTime = 5 * time.Second

// use makes c the user of a shelf, once everything that the user before has sent was handled.
func (k *Keeper) use(c *fdpass.Conn, name string) (*shelf, error) {
	if len(name) > MaxKey {
		return nil, fmt.Errorf("the name of the shelf has %d bytes, at most %d are allowed", len(name), MaxKey)
	}
	for begun := time.Now(); ; {
		k.mu.Lock()
		s := k.shelves[name]
		if s == nil {
			if len(k.shelves) >= maxShelves {
				k.mu.Unlock()
				return nil, fmt.Errorf("shelf %q would be one of more than %d, which is the limit", name, maxShelves)
			}
			s = &shelf{fds: map[uint32]int{}}
			k.shelves[name] = s
		}
		if s.user == nil || s.user == c {
			if s.user == nil {
				s.user, s.ended = c, make(chan struct{})
			}
			k.mu.Unlock()
			return s, nil
		}
		user, ended := s.user, s.ended
		k.mu.Unlock()
		if !user.Gone() {
			return nil, leased{fmt.Sprintf("an agent that uses shelf %q %s (pid %d); stop it first", name, leasedText, user.Peer().PID)}
		}
		select {
		case <-ended:
		case <-time.After(drainTime - time.Since(begun)):
			return nil, fmt.Errorf("what the agent before has put on shelf %q is not handled yet", name)
		}
	}
}

// unuse ends c's use of its shelves. lives says that the agent has not ended.
func (k *Keeper) unuse(c *fdpass.Conn, lives bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for name, s := range k.shelves {
		if s.user != c {
			continue
		}
		s.user, s.lives = nil, lives
		close(s.ended)
		if len(s.fds) == 0 {
			delete(k.shelves, name)
		}
	}
}

// shelfPage returns the next sockets of a shelf, from a number on, with their duplicates.
func (k *Keeper) shelfPage(s *shelf, from uint32) (slots []uint32, fds []int, more bool, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for slot := from; slot < s.top; slot++ { // agents use the lowest numbers
		old, there := s.fds[slot]
		if !there {
			continue
		}
		if len(slots) == fdpass.MaxFiles {
			return slots, fds, true, nil
		}
		fd, err := unix.FcntlInt(uintptr(old), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			fdpass.CloseAll(fds)
			return nil, nil, false, err
		}
		slots, fds = append(slots, slot), append(fds, fd)
	}
	return slots, fds, false, nil
}

// shelve changes c's shelf as r says. It takes over the descriptors. Nobody is told of what is wrong with r.
func (k *Keeper) shelve(c *fdpass.Conn, r *request, fds []int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.shelves[r.Key]
	if s == nil || s.user != c || len(fds) != len(r.Slots) {
		lives := !c.Gone()
		for _, fd := range fds {
			letGo(fd, lives)
		}
		return
	}
	for _, slot := range r.Drop {
		s.drop(slot)
	}
	for i, slot := range r.Slots {
		if slot >= k.most {
			unix.Close(fds[i])
			continue
		}
		s.drop(slot)
		s.fds[slot], s.top = fds[i], max(s.top, slot+1)
	}
}

// restTime is how long the keeper rests after all that was put on a shelf. What is sent meanwhile waits in the socket,
// and is held there. To be woken costs more than all the rest, so with many short connections it took a seventh of
// their rate.
const restTime = 10 * time.Millisecond

func (s *shelf) drop(slot uint32) {
	if fd, there := s.fds[slot]; there {
		unix.Close(fd)
		delete(s.fds, slot)
	}
}

// dropShelves lets go of what is on all shelves, and of what is still on its way to them when it comes. The caller
// holds mu.
func (k *Keeper) dropShelves() {
	for name, s := range k.shelves {
		delete(k.shelves, name)
		lives := s.lives
		if s.user != nil {
			lives = !s.user.Gone()
		}
		for slot, fd := range s.fds {
			delete(s.fds, slot)
			letGo(fd, lives)
		}
	}
}

// letGo closes a socket that nobody will take. When its agent has ended, nobody carries its connection any more, and
// the far end is told so by a reset. An agent that lives goes on with the socket, and SO_LINGER would be set for its
// close, too.
func letGo(fd int, agentLives bool) {
	if !agentLives {
		_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	}
	unix.Close(fd)
}

// ErrNoShelf says that the keeper is of a version without shelves.
var ErrNoShelf = errors.New("the keeper is of an earlier version, which cannot hold the sockets of relayed connections; replace it when the node is drained")

// ErrShelfBusy says that the keeper has not handled what was sent before.
var ErrShelfBusy = errors.New("the keeper is busy")

const (
	// releaseAt is how many releases are sent together at least, or after releaseAfter fewer, and maxReleases at most.
	releaseAt    = 64
	maxReleases  = 1024
	releaseAfter = 50 * time.Millisecond
)

// Shelf has the keeper hold many sockets, each under a number. Its methods are safe for concurrent use.
type Shelf struct {
	path, name string

	mu   sync.Mutex // guards what follows; held while a message is sent, which does not block
	conn *fdpass.Conn
	most uint32

	waiting sync.Mutex // guards what follows; locked after mu, and not held while a message is sent
	drops   map[uint32]bool
	timer   *time.Timer // sends drops; armed while there are any
}

// OpenShelf returns the shelf of that name, and what was on it. The sockets belong to the caller. Only one client at a
// time uses a shelf.
func OpenShelf(ctx context.Context, path, name string) (*Shelf, map[uint32]int, error) {
	s := &Shelf{path: path, name: name}
	found, err := s.open(ctx)
	if err != nil {
		return nil, nil, err
	}
	return s, found, nil
}

func (s *Shelf) open(ctx context.Context) (found map[uint32]int, err error) {
	conn, err := fdpass.Dial(ctx, s.path)
	if err != nil {
		return nil, fmt.Errorf("connect to the keeper: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	found = map[uint32]int{}
	var most uint32
	for from, more := uint32(0), true; more; {
		var a answer
		fds, err := conn.Call(ctx, request{Op: opShelf, Key: s.name, From: from}, &a)
		switch {
		case err != nil:
		case a.Error != "" && !a.Shelf:
			err = ErrNoShelf
		case a.Error != "":
			err = errors.New(a.Error)
		case len(fds) != len(a.Slots):
			err = fmt.Errorf("got %d descriptors for %d numbers", len(fds), len(a.Slots))
		}
		if err != nil {
			fdpass.CloseAll(fds)
			fdpass.CloseAll(slices.Collect(maps.Values(found)))
			_ = conn.Close()
			return nil, fmt.Errorf("take what is on the keeper's shelf %q: %w", s.name, err)
		}
		for i, slot := range a.Slots {
			found[slot] = fds[i]
			from = slot + 1
		}
		more, most = a.More && len(a.Slots) > 0, a.Most
	}
	_ = conn.Quiet() // without it the same costs more
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conn, s.most = conn, most
	s.rearm()
	return found, nil
}

// Most returns the number below which sockets may be kept.
func (s *Shelf) Most() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return int(s.most)
}

// Keep has the keeper hold duplicates of sockets under numbers, in place of what was held under these. It does not
// block: while the keeper is busy, it returns ErrShelfBusy. When it returns nil, the sockets are held, also if this
// process ends at once. At most fdpass.MaxFiles sockets come at once. None is held when a number is not below Most,
// which may be smaller for the next keeper.
func (s *Shelf) Keep(slots []uint32, fds []int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, slot := range slots {
		if slot >= s.most {
			return fmt.Errorf("keep a socket as number %d of shelf %q: the keeper holds only numbers below %d", slot, s.name, s.most)
		}
	}
	return s.send(slots, fds)
}

// send has sockets kept, and sends what waits to be released. It leaves out the numbers of the former: what is kept
// there replaces what was to be released, and a release that came later would be one of the new socket. The caller
// holds mu.
func (s *Shelf) send(slots []uint32, fds []int) error {
	drops, replaced := s.takeDrops(slots)
	err := s.conn.TrySend(request{Op: opShelve, Key: s.name, Slots: slots, Drop: drops}, fds...)
	if err != nil {
		s.addDrops(drops)
		s.addDrops(replaced)
	}
	if errors.Is(err, fdpass.ErrFull) {
		return ErrShelfBusy
	}
	return err
}

// takeDrops takes numbers to be released, and those of slots that were to be released.
func (s *Shelf) takeDrops(slots []uint32) (drops, replaced []uint32) {
	s.waiting.Lock()
	defer s.waiting.Unlock()
	for _, slot := range slots {
		if s.drops[slot] {
			replaced = append(replaced, slot)
			delete(s.drops, slot)
		}
	}
	for slot := range s.drops {
		if len(drops) == maxReleases {
			break
		}
		drops = append(drops, slot)
		delete(s.drops, slot)
	}
	return drops, replaced
}

func (s *Shelf) addDrops(slots []uint32) {
	s.waiting.Lock()
	defer s.waiting.Unlock()
	for _, slot := range slots {
		s.drops[slot] = true
	}
}

// Release says that the socket under a number need not be held any longer. The keeper is told a little later, together
// with others. Release sends nothing itself and waits for nobody who does.
func (s *Shelf) Release(slot uint32) {
	s.waiting.Lock()
	defer s.waiting.Unlock()
	if s.drops == nil {
		s.drops = map[uint32]bool{}
	}
	s.drops[slot] = true
	switch {
	case s.timer == nil:
		s.timer = time.AfterFunc(releaseAfter, s.release)
	case len(s.drops) == 1:
		s.timer.Reset(releaseAfter)
	case len(s.drops) == releaseAt:
		s.timer.Reset(0)
	}
}

// release is called by the timer.
func (s *Shelf) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if errors.Is(s.sendDrops(), ErrShelfBusy) {
		s.rearm()
	}
}

// sendDrops sends all that waits to be released. The caller holds mu.
func (s *Shelf) sendDrops() (err error) {
	for err == nil && s.anyDrops() {
		err = s.send(nil, nil)
	}
	return err
}

func (s *Shelf) anyDrops() bool {
	s.waiting.Lock()
	defer s.waiting.Unlock()
	return len(s.drops) > 0
}

func (s *Shelf) rearm() {
	s.waiting.Lock()
	defer s.waiting.Unlock()
	if len(s.drops) > 0 {
		s.timer.Reset(releaseAfter)
	}
}

// Run waits for the end of the keeper, and opens the shelf of the next one, until ctx ends. again is called then, and
// has everything kept once more. After Run the Shelf can be used until Close. Run does nothing on a nil Shelf.
func (s *Shelf) Run(ctx context.Context, again func()) {
	if s == nil {
		return
	}
	tick := time.NewTicker(reconnectTime)
	defer tick.Stop()
	for {
		s.mu.Lock()
		conn := s.conn
		s.mu.Unlock()
		var nothing struct{}
		if fds, err := conn.ReceiveUntil(ctx, &nothing); err == nil { // the keeper sends only answers
			fdpass.CloseAll(fds)
		}
		if ctx.Err() != nil {
			return
		}
		_ = conn.Close()
		for opened := false; !opened; {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			found, err := s.open(ctx)
			fdpass.CloseAll(slices.Collect(maps.Values(found)))
			opened = err == nil
		}
		again()
	}
}

// Close ends the use of the shelf. What is on it stays.
func (s *Shelf) Close() {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.sendDrops() // what cannot be sent is found by the next agent, which has no record of it
	_ = s.conn.Close()
}
