package e2e

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/kube/cni"
	"tapestry.dev/tapestry/test/probe"
)

func print(v any) error { return json.NewEncoder(os.Stdout).Encode(v) }

func started() { fmt.Println("started") }

// untilInputEnds returns a context that ends with ctx or with the standard input.
func untilInputEnds(ctx context.Context) context.Context {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		defer cancel()
		_, _ = io.Copy(io.Discard, os.Stdin)
	}()
	return ctx
}

// talk keeps a TCP connection to each address until the input ends.
func talk(ctx context.Context, addrs []string) error {
	ctx = untilInputEnds(ctx)
	out := map[string]probe.Held{}
	var mu sync.Mutex
	var begun, done sync.WaitGroup
	begun.Add(len(addrs))
	for _, addr := range addrs {
		done.Go(func() {
			once := sync.OnceFunc(begun.Done)
			untilAnswered(ctx, addr)
			h := probe.Hold(ctx, probe.Request{Network: "tcp", Addr: addr}, 2*time.Millisecond, nil, once)
			if ctx.Err() != nil && h.Error == context.Canceled.Error() {
				h.Error = "" // it ended because it was told to
			}
			mu.Lock()
			out[addr] = h
			mu.Unlock()
			once()
		})
	}
	begun.Wait()
	started()
	done.Wait()
	return print(out)
}

// untilAnswered waits until a server answers.
func untilAnswered(ctx context.Context, addr string) {
	untilWell(ctx, func() bool {
		return probe.Ask(ctx, probe.Request{Network: "tcp", Addr: addr, Timeout: time.Second}).Error == ""
	})
}

// untilWell waits until something succeeds, since the agents learn about a new lab's pods a moment after the lab.
func untilWell(ctx context.Context, ok func() bool) {
	for end := time.Now().Add(patience); time.Now().Before(end) && ctx.Err() == nil && !ok(); {
	}
}

// askAs takes an address as its own and asks a TCP and a UDP server from there: ADDRESS ADDR TEXT TIMEOUT.
func askAs(ctx context.Context, args []string) error {
	own, err := netip.ParseAddr(args[0])
	if err != nil {
		return err
	}
	timeout, err := time.ParseDuration(args[3])
	if err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	a := &netlink.Addr{IPNet: &net.IPNet{IP: own.AsSlice(), Mask: net.CIDRMask(own.BitLen(), own.BitLen())}}
	if own.Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	switch err := netlink.AddrAdd(lo, a); {
	case err == nil:
		defer netlink.AddrDel(lo, a)
	case errors.Is(err, unix.EEXIST): // the machine has the address already
	default:
		return fmt.Errorf("take the address %s: %w", own, err)
	}
	answers := map[string]string{"tcp": "none", "udp": "none"}
	var mu sync.Mutex
	var asking sync.WaitGroup
	for network, local := range map[string]net.Addr{"tcp": &net.TCPAddr{IP: own.AsSlice()}, "udp": &net.UDPAddr{IP: own.AsSlice()}} {
		asking.Go(func() {
			d := net.Dialer{Timeout: timeout, LocalAddr: local}
			c, err := d.DialContext(ctx, network, args[1])
			if err != nil {
				return
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(timeout))
			_, _ = io.WriteString(c, args[2]+"\n")
			buf := make([]byte, 4096)
			for text := ""; !strings.Contains(text, args[2]); {
				n, err := c.Read(buf)
				if err != nil {
					return
				}
				text += string(buf[:n])
				mu.Lock()
				answers[network] = text
				mu.Unlock()
			}
		})
	}
	asking.Wait()
	return print(answers)
}

// stream returns a repeatable sequence of bytes.
func stream(seed uint64, n int64) io.Reader {
	var key [32]byte
	binary.BigEndian.PutUint64(key[:], seed)
	return io.LimitReader(rand.NewChaCha8(key), n)
}

// transferServe reads what each connection sends, answers with its hash, and sends as many bytes of its own stream.
func transferServe(ctx context.Context, args []string) error {
	return serveEach(ctx, args[0], serveTransfer)
}

// serveEach has serve called for each connection that comes to addr, in a goroutine of its own, until the input ends.
func serveEach(ctx context.Context, addr string, serve func(net.Conn)) error {
	ctx = untilInputEnds(ctx)
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { ln.Close() })
	started()
	for {
		c, err := ln.Accept()
		if err != nil {
			return nil // the input has ended
		}
		go serve(c)
	}
}

func serveTransfer(c net.Conn) {
	defer c.Close()
	h := sha256.New()
	n, err := io.Copy(h, c)
	if err == nil {
		_, err = fmt.Fprintln(c, hex.EncodeToString(h.Sum(nil)))
	}
	if err == nil {
		_, err = io.Copy(c, stream(2, n))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "transfer:", err)
	}
}

// transferred is the result of a transfer.
type transferred struct {
	Bytes        int64
	There, Back  bool // the received bytes are those sent
	Milliseconds int64
}

// transfer sends a stream and receives one: ADDR BYTES.
func transfer(ctx context.Context, args []string) error {
	size, err := strconv.ParseInt(args[1], 10, 64)
	if err != nil {
		return err
	}
	out, err := transferOnce(ctx, args[0], 1, size)
	if err != nil {
		return err
	}
	return print(out)
}

func transferOnce(ctx context.Context, addr string, seed uint64, size int64) (out transferred, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return out, err
	}
	return transferOver(c, seed, size)
}

// transferOver transfers over a connection, and closes it.
func transferOver(c net.Conn, seed uint64, size int64) (out transferred, err error) {
	start := time.Now()
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	want := sha256.New()
	if _, err := io.Copy(c, io.TeeReader(stream(seed, size), want)); err != nil {
		return out, err
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return out, err
	}
	in := bufio.NewReader(c)
	line, err := in.ReadString('\n')
	if err != nil {
		return out, err
	}
	out.There = strings.TrimSpace(line) == hex.EncodeToString(want.Sum(nil))
	got, back := sha256.New(), sha256.New()
	if out.Bytes, err = io.Copy(got, in); err != nil {
		return out, err
	}
	_, _ = io.Copy(back, stream(2, size)) // a hash returns no errors
	out.Back = string(got.Sum(nil)) == string(back.Sum(nil))
	out.Milliseconds = time.Since(start).Milliseconds()
	return out, nil
}

// attachAs becomes another user and asks the agent at a socket to attach a pod, with a descriptor that is no TAP's: UID
// SOCKET.
func attachAs(ctx context.Context, args []string) error {
	uid, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	// The file is opened before the process loses the right to open it.
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := errors.Join(syscall.Setresgid(uid, uid, uid), syscall.Setresuid(uid, uid, uid)); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err = (&cni.Client{Path: args[1]}).Add(ctx, cni.Pod{
		Namespace: "default", Name: "intruder", UID: "intruder", MAC: "02:00:00:00:00:99",
		Addrs: []netip.Addr{netip.MustParseAddr("10.244.1.99")},
	}, f)
	out := "attached"
	if err != nil {
		out = err.Error()
	}
	return print(out)
}
