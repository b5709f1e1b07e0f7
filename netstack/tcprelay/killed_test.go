package tcprelay_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/keeper"
	"tapestry.dev/tapestry/netstack/memo"
	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/poll"
	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/netstack/tcprelay"
)

// relayProcess is set in the environment of a process that has a Relay and is killed. For the value farPods its pods
// are those of another node, and of a hundred segments one is lost. For the value noHold nothing outlives the process.
const (
	relayProcess = "TAPESTRY_TEST_RELAY"
	farPods      = "far"
	noHold       = "no hold"
)

func TestMain(m *testing.M) {
	if os.Getenv(relayProcess) != "" {
		if err := runRelay(); err != nil {
			fmt.Fprintln(os.Stderr, "the process with the relay:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// The descriptors that such a process inherits.
const (
	framesFD = 3 + iota // frames from and to the pod, which wait here while there is no process
	keeperFD            // sockets that are held
	memoryFD
	listenFD // of both families
)

// The first word of a message about sockets that are held; slots follow.
const (
	opKeep = iota + 1
	opRelease
	opReady // all sockets were passed on, or the process goes on with them
)

const heldSlots = 256

func tell(fd int, op uint32, slots []uint32, fds []int) error {
	b := binary.LittleEndian.AppendUint32(nil, op)
	for _, s := range slots {
		b = binary.LittleEndian.AppendUint32(b, s)
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	return unix.Sendmsg(fd, b, oob, nil, 0)
}

func hear(fd int) (op uint32, slots []uint32, fds []int, err error) {
	b, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4*tcprelay.MaxKept))
	n, oobn, _, _, err := unix.Recvmsg(fd, b, oob, unix.MSG_CMSG_CLOEXEC)
	for err == unix.EINTR {
		n, oobn, _, _, err = unix.Recvmsg(fd, b, oob, unix.MSG_CMSG_CLOEXEC)
	}
	if err != nil || n < 4 {
		return 0, nil, nil, errors.Join(err, io.EOF)
	}
	op = binary.LittleEndian.Uint32(b)
	for i := 4; i < n; i += 4 {
		slots = append(slots, binary.LittleEndian.Uint32(b[i:]))
	}
	msgs, _ := unix.ParseSocketControlMessage(oob[:oobn])
	for i := range msgs {
		if got, err := unix.ParseUnixRights(&msgs[i]); err == nil {
			fds = append(fds, got...)
		}
	}
	return op, slots, fds, nil
}

// runRelay carries connections until the process is killed.
func runRelay() error {
	found := map[uint32]int{}
	for {
		op, slots, fds, err := hear(keeperFD)
		if err != nil {
			return err
		}
		if op == opReady {
			break
		}
		for i, s := range slots {
			found[s] = fds[i]
		}
	}
	mem, err := keeper.Map(os.NewFile(memoryFD, "memory"))
	if err != nil {
		return err
	}
	m, err := memo.Open(mem, tcprelay.MemoryKind)
	if err != nil {
		return err
	}
	poller, err := poll.New(2)
	if err != nil {
		return err
	}
	far := os.Getenv(relayProcess) == farPods
	lose := func() bool { return far && rand.IntN(100) == 0 }
	o := tcprelay.Options{
		Far:    func(packet.Addr) (int, bool) { return mtu, far },
		Asks:   asks,
		Poller: poller, MTU: func() int { return mtu }, Refuse: func(*packet.Packet, packet.ICMPError, packet.Addr) {},
		Send: func(ip []byte, vnet packet.VNetHdr) {
			var p packet.Packet
			if p.ParseIP(ip) != packet.Good || lose() {
				return
			}
			p.VNet = vnet
			swap(&p, host, outside, func(t *packet.Tuple) *packet.Addr { return &t.Src })
			frame := make([]byte, packet.HeadLen+len(ip))
			copy(frame[packet.HeadLen:], ip)
			p.PutHead(frame, tap.RouterMAC, podMAC)
			_ = unix.Sendto(framesFD, frame, 0, nil)
		},
		Hold: &tcprelay.Hold{
			Memory: m, Most: m.Len(), Found: found,
			Keep:    func(slots []uint32, fds []int) error { return tell(keeperFD, opKeep, slots, fds) },
			Release: func(s uint32) { _ = tell(keeperFD, opRelease, []uint32{s}, nil) },
		},
	}
	if os.Getenv(relayProcess) == noHold {
		o.Hold = nil
	}
	r := tcprelay.New(o)
	n := r.Resume(func(netip.Addr) bool { return !far })
	if err := tell(keeperFD, opReady, []uint32{uint32(n.Resumed), uint32(n.Lost)}, nil); err != nil {
		return err
	}
	for i := range podIPs {
		l, err := net.FileListener(os.NewFile(uintptr(listenFD+i), "listener"))
		if err != nil {
			return err
		}
		go acceptAndJoin(r, l, netip.AddrPortFrom(podIPs[i], 80))
	}
	go r.GoOn()
	var p packet.Packet
	var turn tcprelay.Turn
	frame := make([]byte, packet.MaxFrame)
	for {
		n, err := unix.Read(framesFD, frame[:cap(frame)])
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return err
		}
		if p.ParseFrame(frame[:n]) == packet.Good && !lose() {
			swap(&p, outside, host, func(t *packet.Tuple) *packet.Addr { return &t.Dst })
			r.Deliver(&p, &turn, true)
			if p.Buf != nil {
				frame = p.Buf
			}
		}
		turn.End()
	}
}

func acceptAndJoin(r *tcprelay.Relay, l net.Listener, to netip.AddrPort) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		from := netip.MustParseAddrPort(c.RemoteAddr().String())
		seen := netip.AddrPortFrom(seenAs[0].Addr(), from.Port())
		if !to.Addr().Is4() {
			seen = netip.AddrPortFrom(seenAs[1].Addr(), from.Port())
		}
		go func() { _ = r.Join(context.Background(), c.(*net.TCPConn), seen, to, nil) }()
	}
}

// killing is a pod, and a Relay for it in one process after the other.
type killing struct {
	t         *testing.T
	kind      string // the value of relayProcess
	pod       *netstacktest.Pod
	files     []*os.File // that each process inherits; the second one is its own
	listeners []*net.TCPListener
	near      int // our end of the frames

	held          map[uint32]int
	resumed, lost int
	process       *exec.Cmd
	drained       chan struct{} // closed when all that the process sent about sockets was received
	readyToGo     chan struct{} // closed when the process goes on
}

func newKilling(t *testing.T, kind string) *killing {
	t.Helper()
	k := &killing{t: t, kind: kind, held: map[uint32]int{}}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	k.near = pair[0]
	memory, err := keeper.NewMemory("test", memo.Size(heldSlots))
	if err != nil {
		t.Fatal(err)
	}
	k.files = []*os.File{os.NewFile(uintptr(pair[1]), "frames"), nil, memory}
	for i := range podIPs {
		l := listen(t, i)
		f, err := l.File()
		if err != nil {
			t.Fatal(err)
		}
		k.listeners, k.files = append(k.listeners, l), append(k.files, f)
	}
	dev := netstacktest.NewDevice()
	if k.pod, err = netstacktest.NewPod(dev, podMAC, tap.RouterMAC, mtu, podIPs...); err != nil {
		t.Fatal(err)
	}
	ran := make(chan error, 1)
	go func() {
		ran <- dev.Run(func(frame []byte) []byte {
			_ = unix.Sendto(k.near, frame, 0, nil) // waits while there is no process and the queue is full
			return frame
		}, func() {})
	}()
	read := make(chan struct{})
	go func() {
		defer close(read)
		frame := make([]byte, packet.MaxFrame)
		for {
			n, err := unix.Read(k.near, frame)
			if err == unix.EINTR {
				continue
			}
			if err != nil || n == 0 {
				return
			}
			_ = dev.Write(bytes.Clone(frame[:n]))
		}
	}()
	t.Cleanup(func() {
		_ = unix.Shutdown(k.near, unix.SHUT_RDWR)
		<-read
		k.pod.Close()
		_ = dev.Close()
		<-ran
		for _, fd := range k.held {
			unix.Close(fd)
		}
		for _, f := range k.files {
			if f != nil {
				_ = f.Close()
			}
		}
		unix.Close(k.near)
	})
	return k
}

// start starts a process and gives it what the one before had.
func (k *killing) start() {
	k.t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		k.t.Fatal(err)
	}
	k.files[1] = os.NewFile(uintptr(pair[1]), "keeper")
	k.process = exec.Command(os.Args[0])
	k.process.Env, k.process.Stderr, k.process.ExtraFiles = append(os.Environ(), relayProcess+"="+k.kind), os.Stderr, k.files
	if err := k.process.Start(); err != nil {
		k.t.Fatal(err)
	}
	_ = k.files[1].Close()
	k.files[1] = nil
	for s, fd := range k.held {
		if err := tell(pair[0], opKeep, []uint32{s}, []int{fd}); err != nil {
			k.t.Fatal(err)
		}
	}
	if err := tell(pair[0], opReady, nil, nil); err != nil {
		k.t.Fatal(err)
	}
	k.drained, k.readyToGo = make(chan struct{}), make(chan struct{})
	go k.keep(pair[0])
}

// keep plays the keeper for one process.
func (k *killing) keep(fd int) {
	defer close(k.drained)
	defer unix.Close(fd)
	for {
		op, slots, fds, err := hear(fd)
		if err != nil {
			return
		}
		switch op {
		case opReady:
			k.resumed += int(slots[0])
			k.lost += int(slots[1])
			close(k.readyToGo)
			continue
		case opRelease:
			fds = make([]int, len(slots))
		}
		for i, s := range slots {
			if old, there := k.held[s]; there {
				unix.Close(old)
				delete(k.held, s)
			}
			if op == opKeep {
				k.held[s] = fds[i]
			}
		}
	}
}

func (k *killing) kill() {
	_ = k.process.Process.Kill()
	_ = k.process.Wait()
	<-k.drained
}

// slowly writes b in pieces of random sizes with pauses, so that the connection lives for several processes.
func slowly(c net.Conn, b []byte, until time.Time) error {
	for len(b) > 0 {
		n := min(len(b), 1+rand.IntN(200<<10))
		if rand.IntN(3) == 0 {
			n = min(len(b), 1+rand.IntN(100))
		}
		if _, err := c.Write(b[:n]); err != nil {
			return err
		}
		b = b[n:]
		if time.Now().Before(until) {
			time.Sleep(time.Duration(rand.IntN(4_000_000)))
		}
	}
	return c.(interface{ CloseWrite() error }).CloseWrite()
}

// oneEnd says and hears everything.
func oneEnd(c net.Conn, said, want []byte, until time.Time) error {
	wrote := make(chan error, 1)
	go func() { wrote <- slowly(c, said, until) }()
	got, err := io.ReadAll(c)
	if err == nil && !bytes.Equal(got, want) {
		i := 0
		for i < min(len(got), len(want)) && got[i] == want[i] {
			i++
		}
		err = fmt.Errorf("heard %d bytes, want %d, and they differ from byte %d on", len(got), len(want), i)
	}
	return errors.Join(err, <-wrote)
}

// How many bytes the two ends of a connection say. The pod's stack takes long for them under the race detector.
const (
	toServer = 700 << 10 >> (2 * slow)
	toClient = 900 << 10 >> (2 * slow)
)

// serveSeed answers one connection, whose first byte is the client's seed.
func serveSeed(c net.Conn, until time.Time, open func()) error {
	defer c.Close()
	first := make([]byte, 1)
	if _, err := io.ReadFull(c, first); err != nil {
		return nil // the process was killed before it had answered the pod, which repeats its SYN
	}
	open()
	if err := oneEnd(c, noise(first[0], toClient), noise(first[0]+100, toServer), until); err != nil {
		return fmt.Errorf("server %d: %w", first[0], err)
	}
	return nil
}

// Connections outlive the processes that carry them, whenever those are killed: every byte arrives once and in order,
// in both directions and up to the ends of both streams.
func TestKilled(t *testing.T) { killAgainAndAgain(t, "near", true) }

// The same for clients of pods of another node, where segments are lost on the way besides.
func TestKilledFar(t *testing.T) { killAgainAndAgain(t, farPods, false) }

// killAgainAndAgain kills the processes of one kind while they carry connections of clients, and of pods if egress.
func killAgainAndAgain(t *testing.T, kind string, egress bool) {
	k := newKilling(t, kind)
	k.pod.WithoutSACK() // what comes behind a hole dies with the process
	kills := 25
	if raceEnabled || testing.Short() {
		kills = 10
	}
	k.start()
	until := time.Now().Add(time.Duration(kills) * 60 * time.Millisecond)
	var servers, clients, joined sync.WaitGroup
	begun := make(chan struct{}) // closed before the first process is killed
	serve := func(l net.Listener, open func()) {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			servers.Go(func() {
				if err := serveSeed(c, until, open); err != nil {
					t.Error(err)
				}
			})
		}
	}
	ctx, cancel := context.WithDeadline(t.Context(), netstacktest.Until(t))
	defer cancel()
	client := func(seed byte, dial func() (net.Conn, error)) {
		c, err := dial()
		if err == nil {
			defer c.Close()
			if _, err = c.Write([]byte{seed}); err == nil {
				err = oneEnd(c, noise(seed+100, toServer), noise(seed, toClient), until)
			}
		}
		if err != nil {
			t.Errorf("client %d: %v", seed, err)
		}
	}
	for i := range podIPs {
		inPod, err := k.pod.Listen(netip.AddrPortFrom(podIPs[i], 80))
		if err != nil {
			t.Fatal(err)
		}
		onHost := listen(t, i)
		defer inPod.Close()
		go serve(inPod, joined.Done)
		go serve(onHost, func() {})
		for n := range byte(4) {
			joined.Add(1)
			if egress {
				clients.Go(func() {
					<-begun
					client(byte(i)*4+n, func() (net.Conn, error) {
						return k.pod.Dial(ctx, "tcp", netip.AddrPortFrom(outside[i], port(onHost.Addr())))
					})
				})
			}
			clients.Go(func() {
				client(50+byte(i)*4+n, func() (net.Conn, error) { return net.Dial("tcp", k.listeners[i].Addr().String()) })
			})
		}
	}
	joined.Wait() // a client who was accepted and is not joined yet would be reset
	close(begun)
	for range kills {
		<-k.readyToGo
		time.Sleep(time.Duration(rand.IntN(40_000_000)))
		k.kill()
		k.start()
	}
	clients.Wait()
	servers.Wait()
	k.kill()
	t.Logf("%d times a connection went on, %d times one did not", k.resumed, k.lost)
	if k.lost > 0 {
		t.Errorf("%d connections could not go on", k.lost)
	}
}
