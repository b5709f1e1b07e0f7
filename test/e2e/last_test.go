package e2e

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/test/awake"
)

const (
	// lastPort is where lastServe listens, in pods and outside.
	lastPort = 9200
	// lastBlock is how many bytes each end of a connection says each time.
	lastBlock = 2 << 10
	// lastHead is the length of what a client says first: the seed of its stream, and the pause between two blocks.
	lastHead = 16
	// lastTry is the time between two attempts to connect to one address.
	lastTry = 20 * time.Millisecond
)

// lastPause is the time between two blocks of a connection, or between two datagrams, where there are count of them.
// With many of them it is long, so that the machine has time; each still says something during every outage that is
// longer, and all together say something at each instant.
func lastPause(count int) time.Duration {
	return max(40*time.Millisecond, time.Duration(count)*4*time.Millisecond)
}

// uptime is a clock that all processes of a machine share (CLOCK_MONOTONIC).
func uptime() time.Duration {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) // it is there
	return time.Duration(now.Nano())
}

// past knows how far a process's awake.Clock was at each instant of the last seconds, as far as the machine let it
// look.
type past struct {
	clock *awake.Clock
	stop  chan struct{}

	mu   sync.Mutex // guards what follows
	at   [1 << 15]instant
	next int // at[next%len(at)] is the oldest
}

type instant struct{ uptime, awake time.Duration }

// pastStep is the time between two instants.
const pastStep = 4 * time.Millisecond

func newPast() *past {
	p := &past{clock: awake.Start(), stop: make(chan struct{})}
	go func() {
		tick := time.NewTicker(pastStep)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				p.mu.Lock()
				p.at[p.next%len(p.at)] = instant{uptime(), p.clock.Now()}
				p.next++
				p.mu.Unlock()
			case <-p.stop:
				p.clock.Stop()
				return
			}
		}
	}()
	return p
}

func (p *past) close() { close(p.stop) }

// since returns how long ago something was said, and how much of that time the machine let this process run.
func (p *past) since(then time.Duration) stalled {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := stalled{real: uptime() - then}
	s.awake = s.real
	first := max(0, p.next-len(p.at))
	// The last instant before then.
	if n := sort.Search(p.next-first, func(i int) bool { return p.at[(first+i)%len(p.at)].uptime > then }) - 1; n >= 0 {
		s.awake = min(s.real, p.clock.Now()-p.at[(first+n)%len(p.at)].awake)
	}
	return s
}

// stalled is how long something that was said took until it was heard: in real time, and in the time in which the
// machine let the hearer run.
type stalled struct{ real, awake time.Duration }

func (s *stalled) add(o stalled) { s.real, s.awake = max(s.real, o.real), max(s.awake, o.awake) }

// speech is one direction of a connection: blocks with the time at which each was written, the longest stall of the
// other direction since the block before, a stream that depends on the seed alone, and a hash of everything so far.
type speech struct {
	stream io.Reader
	sum    hash.Hash
	block  [lastBlock]byte
}

const (
	speechHead = 24
	speechSum  = 8
)

func newSpeech(seed uint64) *speech { return &speech{stream: stream(seed, 1<<62), sum: sha256.New()} }

// say writes blocks to c until ctx ends, and then ends the stream. longest has the stalls of what is heard.
func (s *speech) say(ctx context.Context, c net.Conn, pause time.Duration, longest *longest) error {
	tick := time.NewTicker(1 + rand.N(pause)) // thousands do not speak in one instant
	defer tick.Stop()
	first := true
	for {
		b := s.block[:]
		l := longest.take()
		binary.BigEndian.PutUint64(b[0:], uint64(uptime()))
		binary.BigEndian.PutUint64(b[8:], uint64(l.real))
		binary.BigEndian.PutUint64(b[16:], uint64(l.awake))
		_, _ = io.ReadFull(s.stream, b[speechHead:lastBlock-speechSum]) // has no end
		s.sum.Write(b[:lastBlock-speechSum])
		copy(b[lastBlock-speechSum:], s.sum.Sum(nil)[:speechSum])
		if _, err := c.Write(b); err != nil {
			return err
		}
		select {
		case <-tick.C:
			if first {
				first = false
				tick.Reset(pause)
			}
		case <-ctx.Done():
			return c.(*net.TCPConn).CloseWrite()
		}
	}
}

var errWrong = errors.New("other bytes came than were sent")

// hear reads blocks from c to the end of its stream. It calls heard after each block with the stall of that block, and
// the longest one that the other end has told of.
func (s *speech) hear(c net.Conn, p *past, heard func(here, there stalled)) error {
	b, due := s.block[:], make([]byte, lastBlock-speechHead-speechSum)
	for {
		if _, err := io.ReadFull(c, b); err != nil {
			if err == io.EOF {
				return nil
			}
			return err
		}
		here := p.since(time.Duration(binary.BigEndian.Uint64(b)))
		_, _ = io.ReadFull(s.stream, due)
		s.sum.Write(b[:lastBlock-speechSum])
		if !bytes.Equal(b[speechHead:lastBlock-speechSum], due) || !bytes.Equal(b[lastBlock-speechSum:], s.sum.Sum(nil)[:speechSum]) {
			return errWrong
		}
		heard(here, stalled{time.Duration(binary.BigEndian.Uint64(b[8:])), time.Duration(binary.BigEndian.Uint64(b[16:]))})
	}
}

// longest is the longest stall since somebody took it.
type longest struct {
	mu sync.Mutex
	stalled
}

func (l *longest) add(s stalled) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stalled.add(s)
}

func (l *longest) take() stalled {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.stalled
	l.stalled = stalled{}
	return s
}

// lastServe is the far end of last, over TCP and UDP: ADDR.
func lastServe(ctx context.Context, args []string) error {
	ctx = untilInputEnds(ctx)
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", args[0])
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { ln.Close() })
	udp, err := net.ListenPacket("udp", args[0])
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { udp.Close() })
	go echo(udp)
	p := newPast()
	defer p.close()
	started()
	for {
		c, err := ln.Accept()
		if err != nil {
			return nil // the input has ended
		}
		go func() {
			defer c.Close()
			var head [lastHead]byte
			if _, err := io.ReadFull(c, head[:]); err != nil {
				return
			}
			seed, pause := binary.BigEndian.Uint64(head[:]), time.Duration(binary.BigEndian.Uint64(head[8:]))
			until, done := context.WithCancel(ctx)
			defer done()
			var longest longest
			go func() {
				err := newSpeech(seed).hear(c, p, func(here, _ stalled) { longest.add(here) })
				if err != nil && ctx.Err() == nil {
					_ = c.(*net.TCPConn).SetLinger(0)
					_ = c.Close()
				}
				done()
			}()
			_ = newSpeech(seed+1).say(until, c, max(pause, lastTry), &longest)
		}()
	}
}

// lasted is the result of last, of connections to one address, or of UDP sockets.
type lasted struct {
	Connections int
	// Cut counts connections that ended before their time, and Wrong those in which other bytes came than were sent.
	Cut, Wrong int
	Error      string // of one of them
	Bytes      int64
	// WorstMillis is the longest time from the writing of a block to its reading, in either direction, or of UDP from a
	// datagram to its answer. AwakeMillis is the same without the time in which the machine lets nobody run.
	WorstMillis, AwakeMillis float64
	// Attempts counts short connections that were made meanwhile, one after the other: Refused, Reset and Late, which
	// got no answer in time, those that failed. Slowest is how long one took at most.
	Attempts, Refused, Reset, Late int
	SlowestMillis                  float64
	Failure                        string // of one of them
	// Of UDP: Sent counts datagrams, Lost those that were not answered, and Moved the sockets that the server saw at
	// another address than before, or that another server answered.
	Sent, Lost, Moved int
}

// with returns what two helpers have seen together.
func (l lasted) with(o lasted) lasted {
	l.Connections += o.Connections
	l.Cut += o.Cut
	l.Wrong += o.Wrong
	l.Error = cmp.Or(l.Error, o.Error)
	l.Bytes += o.Bytes
	l.WorstMillis, l.AwakeMillis = max(l.WorstMillis, o.WorstMillis), max(l.AwakeMillis, o.AwakeMillis)
	l.Attempts += o.Attempts
	l.Refused += o.Refused
	l.Reset += o.Reset
	l.Late += o.Late
	l.SlowestMillis = max(l.SlowestMillis, o.SlowestMillis)
	l.Failure = cmp.Or(l.Failure, o.Failure)
	l.Sent += o.Sent
	l.Lost += o.Lost
	l.Moved += o.Moved
	return l
}

// lastArgs are the arguments of last: TCP UDP OF FROM NETWORK/ADDR... TCP and UDP are how many connections and sockets
// it has to each address. OF is how many connections all helpers together have there. FROM is a list of addresses, with
// commas, from which they are made by turns; "-" leaves that to the kernel.
type lastArgs struct {
	count map[string]int // by network
	pause time.Duration
	from  []netip.Addr
	to    [][2]string // network and address
}

func parseLast(args []string) (a lastArgs, err error) {
	var n [3]int
	for i := range n {
		if n[i], err = strconv.Atoi(args[i]); err != nil {
			return a, err
		}
	}
	a.count, a.pause = map[string]int{"tcp": n[0], "udp": n[1]}, lastPause(n[2])
	for _, s := range args[4:] {
		network, addr, _ := strings.Cut(s, "/")
		a.to = append(a.to, [2]string{network, addr})
	}
	if args[3] == "-" {
		return a, nil
	}
	for s := range strings.SplitSeq(args[3], ",") {
		addr, err := netip.ParseAddr(s)
		if err != nil {
			return a, err
		}
		a.from = append(a.from, addr)
	}
	return a, nil
}

// fromOf returns the address from which the connection number n is made, or the zero Addr.
func (a *lastArgs) fromOf(n int) netip.Addr {
	if len(a.from) == 0 {
		return netip.Addr{}
	}
	return a.from[n%len(a.from)]
}

// last keeps connections and UDP sockets until the input ends, with streams in both directions; lastArgs has its
// arguments. It prints a lasted for each address.
func last(ctx context.Context, args []string) error {
	ctx = untilInputEnds(ctx)
	a, err := parseLast(args)
	if err != nil {
		return err
	}
	p := newPast()
	defer p.close()
	out := make([]lasted, len(a.to))
	var mu sync.Mutex
	var begun, done sync.WaitGroup
	var counting atomic.Bool // what it takes to begin is no stall
	for i, to := range a.to {
		for n := range a.count[to[0]] {
			begun.Add(1)
			k := kept{to: to[1], from: a.fromOf(n), seed: uint64(n)<<8 | uint64(i)<<40, pause: a.pause, past: p, counting: &counting}
			keep := k.connection
			if to[0] == "udp" {
				keep = k.datagrams
			}
			done.Go(func() {
				got := keep(ctx, sync.OnceFunc(begun.Done))
				mu.Lock()
				defer mu.Unlock()
				out[i] = out[i].with(got)
			})
		}
	}
	begun.Wait()
	counting.Store(true)
	for i, to := range a.to {
		if to[0] == "tcp" {
			done.Go(func() { attempts(ctx, &a, to[1], &out[i], &mu) })
		}
	}
	started()
	done.Wait()
	return print(out)
}

// attempts makes a short connection after the other until ctx ends, and counts them in out, which mu guards.
func attempts(ctx context.Context, a *lastArgs, addr string, out *lasted, mu *sync.Mutex) {
	tick := time.NewTicker(lastTry)
	defer tick.Stop()
	for n := 0; ctx.Err() == nil; n++ {
		before := time.Now()
		err := attempt(addr, a.fromOf(n))
		took := time.Since(before)
		mu.Lock()
		out.tried(err, took)
		mu.Unlock()
		<-tick.C
	}
}

// tried counts an attempt.
func (l *lasted) tried(err error, took time.Duration) {
	l.Attempts++
	l.SlowestMillis = max(l.SlowestMillis, took.Seconds()*1000)
	var late net.Error
	switch {
	case err == nil:
		return
	case errors.Is(err, syscall.ECONNREFUSED):
		l.Refused++
	case errors.As(err, &late) && late.Timeout():
		l.Late++
	default:
		l.Reset++
	}
	l.Failure = err.Error()
}

// attemptTime limits how long an attempt may take.
const attemptTime = patience / 2

// attempt makes a connection, has something answered, and ends it.
func attempt(addr string, from netip.Addr) error {
	c, err := dialFrom("tcp", addr, from, attemptTime)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(attemptTime))
	if _, err = c.Write(make([]byte, lastHead)); err == nil {
		_, err = io.ReadFull(c, make([]byte, 100))
	}
	return err
}

// dialFrom connects from an address, or from any if that is zero.
func dialFrom(network, addr string, from netip.Addr, limit time.Duration) (net.Conn, error) {
	d := net.Dialer{Timeout: limit}
	switch local := netip.AddrPortFrom(from, 0); {
	case !from.IsValid():
	case network == "udp":
		d.LocalAddr = net.UDPAddrFromAddrPort(local)
	default:
		d.LocalAddr = net.TCPAddrFromAddrPort(local)
	}
	return d.Dial(network, addr)
}

// kept is one connection or UDP socket of last.
type kept struct {
	to       string
	from     netip.Addr
	seed     uint64
	pause    time.Duration
	past     *past
	counting *atomic.Bool // stalls count
}

// opening limits how many connections open at once. Whoever begins too many loses some to others (share.Limit).
var opening = make(chan struct{}, 32)

// connection makes a connection and keeps it until ctx ends. It calls begun when that has begun, or failed.
func (k *kept) connection(ctx context.Context, begun func()) (out lasted) {
	opening <- struct{}{}
	opened := sync.OnceFunc(func() {
		<-opening
		begun()
	})
	defer opened()
	out.Connections = 1
	c, err := dialFrom("tcp", k.to, k.from, patience)
	if err != nil {
		out.Cut, out.Error = 1, err.Error()
		return out
	}
	defer c.Close()
	if err := k.converse(ctx, c, &out, opened); err != nil {
		out.Error = err.Error()
		if errors.Is(err, errWrong) {
			out.Wrong = 1
		} else {
			out.Cut = 1
		}
	}
	return out
}

func (k *kept) converse(ctx context.Context, c net.Conn, out *lasted, begun func()) error {
	head := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, k.seed), uint64(k.pause))
	if _, err := c.Write(head); err != nil {
		return err
	}
	said := make(chan error, 1)
	go func() { said <- newSpeech(k.seed).say(ctx, c, k.pause, new(longest)) }()
	err := newSpeech(k.seed+1).hear(c, k.past, func(here, there stalled) {
		begun()
		out.Bytes += lastBlock
		if k.counting.Load() {
			out.stall(here)
			out.stall(there)
		}
	})
	if err == nil && ctx.Err() == nil {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		_ = c.Close()
	}
	return errors.Join(err, <-said)
}

func (l *lasted) stall(s stalled) {
	l.WorstMillis = max(l.WorstMillis, s.real.Seconds()*1000)
	l.AwakeMillis = max(l.AwakeMillis, s.awake.Seconds()*1000)
}
