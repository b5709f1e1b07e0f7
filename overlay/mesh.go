package overlay

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/overlay/gate"
	"tapestry.dev/tapestry/overlay/pathmtu"
	"tapestry.dev/tapestry/overlay/underlay"
)

// Options configure a Mesh for its life.
type Options struct {
	// PrivateKey is this node's key; see LoadOrCreateKey.
	PrivateKey PrivateKey
	// Socket is a bound UDP socket, as OpenSocket makes it. The Mesh works on a duplicate: the caller still owns the
	// file, and may keep it over restarts. nil: the Mesh opens one on ListenPort (0: any port).
	Socket     *os.File
	ListenPort uint16
	// Resumes says that Socket was that of another Mesh of this node. Its peers have sessions with that one, and begin
	// no handshakes, so this Mesh begins them at once; see deference.
	Resumes bool
	// Receive is called with what a peer sent: whole IP packets, decrypted, in order, their sources inside the peer's
	// prefixes. Receive may write to the packets, and must not keep them. It is called concurrently for different
	// peers, never for one peer. It must not call Set or Close.
	Receive func(peer uint64, packets [][]byte)
	// Waiting, if not nil, is called when a Send begins to wait for room (true) and when the wait is over (false). It
	// must not block.
	Waiting func(begin bool)
	// StackAddrs are this node's stack addresses, at most one per family; path probes go from and to them.
	StackAddrs []netip.Addr
	// UnderlayMTU is the MTU in bytes of the underlay's interface; 0: 1500.
	UnderlayMTU int
	// Forbidden reports whether WireGuard datagrams from an address are dropped, in addition to those from the peers'
	// pod ranges. So no peer's endpoint roams into service ranges or this node's own pods. nil: no further address.
	Forbidden func(netip.Addr) bool
	// NoGSO and NoGRO turn off the kernel's segmenting and coalescing of datagrams; see underlay.Options.
	NoGSO, NoGRO bool
	// Logger; nil: slog.Default.
	Logger *slog.Logger
	// Bind replaces the socket with an underlay in memory, for tests; see overlaytest.
	Bind Bind
}

// Bind is an underlay as the engine sees it.
type Bind = conn.Bind

// Mesh is the WireGuard device of a node and its peers.
type Mesh struct {
	o    Options
	log  *slog.Logger
	dev  *device.Device
	bind *underlay.Bind // nil with Options.Bind
	div  *diverter      // what WireGuard sends through
	tun  *tunnel
	own  PublicKey
	gate *gate.Gate
	sock *os.File // opened by the Mesh, nil with Options.Socket

	mu      sync.Mutex // serialises Set; guards applied, dirty, closed
	applied map[PublicKey]Peer
	dirty   bool // the device may differ from applied
	closed  bool

	table   atomic.Pointer[table]
	refused atomic.Pointer[[]Refused] // never nil
	ring    *ring
	cookie  [8]byte // marks this Mesh's probes
	met     meeting

	stackAddrs []packet.Addr
	begun      time.Time
	willing    atomic.Int64                    // until when beats are answered, see nanos
	passing    atomic.Pointer[map[string]bool] // which peers are told that they are passed over, by name; nil for none

	// inflight counts data packets handed to WireGuard and not yet sent.
	inflight atomic.Int64
	stats    counters

	// Used by the prober alone.
	polled       time.Time
	read         time.Time // when WireGuard's state was read last, for whatever reason
	lastInflight int64
	probeSeq     uint16
	beatFrom     int     // the peer at which beats go on for which there was no room
	pinned       []*peer // those with pins

	answerMu   sync.Mutex // guards answers, knocks and responses
	answers    []answer
	knocks     []knock
	responses  []netip.AddrPort
	responded  chan struct{} // there are responses
	wakeProber chan struct{}
	stop       chan struct{}
	done       sync.WaitGroup
}

// counters are written on the data path.
type counters struct {
	sent, sentBytes, sentPartial       atomic.Uint64
	received, receivedBytes            atomic.Uint64
	noPeer, noSession, tooBig, spoofed atomic.Uint64
	cut                                atomic.Uint64
}

// New starts a Mesh without peers.
func New(o Options) (*Mesh, error) {
	if o.PrivateKey.IsZero() {
		return nil, errors.New("start the WireGuard mesh: no private key")
	}
	if o.Receive == nil {
		return nil, errors.New("start the WireGuard mesh: no function to receive packets")
	}
	o.UnderlayMTU = cmp.Or(o.UnderlayMTU, addressing.DefaultUnderlayMTU)
	if o.UnderlayMTU < pathmtu.Small || o.UnderlayMTU > 65535 {
		return nil, fmt.Errorf("start the WireGuard mesh: underlay MTU %d: expected %d to 65535", o.UnderlayMTU, pathmtu.Small)
	}
	m := &Mesh{
		o: o, log: cmp.Or(o.Logger, slog.Default()), begun: time.Now(), own: o.PrivateKey.Public(), ring: newRing(o.Waiting), cookie: newCookie(),
		applied: make(map[PublicKey]Peer), met: newMeeting(), wakeProber: make(chan struct{}, 1), responded: make(chan struct{}, 1), stop: make(chan struct{}),
	}
	for _, a := range o.StackAddrs {
		m.stackAddrs = append(m.stackAddrs, packet.AddrFrom(a))
	}
	m.table.Store(newTable(nil, nil))
	m.refused.Store(new([]Refused))
	m.gate = gate.New(m.own)
	if err := m.start(); err != nil {
		return nil, fmt.Errorf("start the WireGuard mesh: %w", err)
	}
	return m, nil
}

func (m *Mesh) start() error {
	bind := m.o.Bind
	if bind == nil {
		sock := m.o.Socket
		if sock == nil {
			var err error
			if sock, err = OpenSocket(m.o.ListenPort); err != nil {
				return err
			}
			m.sock = sock
		}
		b, err := underlay.New(underlay.Options{
			Socket: sock, Forbidden: m.forbidden, Admit: m.admitDatagram, TooBig: m.noteTooBig, Sent: m.noteSent,
			NoGSO: m.o.NoGSO, NoGRO: m.o.NoGRO, Logger: m.log,
		})
		if err != nil {
			m.closeSocket()
			return err
		}
		m.bind, bind = b, b
	}
	m.tun = newTunnel(m)
	m.div = newDiverter(bind)
	m.dev = device.NewDevice(m.tun, m.div, &device.Logger{
		Verbosef: device.DiscardLogf,
		Errorf:   func(format string, args ...any) { m.log.Warn("wireguard: " + fmt.Sprintf(format, args...)) },
	})
	err := m.dev.SetPrivateKey(device.NoisePrivateKey(m.o.PrivateKey.Reveal()))
	if err == nil {
		err = m.dev.Up()
	}
	if err != nil {
		m.ring.close()
		m.dev.Close()
		m.closeSocket()
		return err
	}
	m.done.Add(1)
	go m.probe()
	return nil
}

// OpenSocket opens the UDP socket of a Mesh, bound to port on all addresses (0: any port), for both families where
// the host has both, else for IPv4.
func OpenSocket(port uint16) (*os.File, error) { return underlay.OpenSocket(port) }

// Port returns the UDP port the Mesh listens on; 0 with Options.Bind.
func (m *Mesh) Port() uint16 {
	if m.bind == nil {
		return 0
	}
	return m.bind.Port()
}

// Close ends the Mesh and its waiting Sends. It returns when no Receive runs any more. Options.Socket stays open.
func (m *Mesh) Close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return
	}
	m.closed = true
	close(m.stop)
	m.ring.close()
	m.done.Wait()
	m.dev.Close()
	m.closeSocket()
}

// closeSocket closes the socket if it is the Mesh's own.
func (m *Mesh) closeSocket() {
	if m.sock != nil {
		m.sock.Close()
	}
}

// Set makes c the set of peers. Only peers that differ are changed; the sessions of the others go on. A peer with a new
// key is a new peer. A peer that is wrong, or that wants what another one has, is left out: see Refused.
func (m *Mesh) Set(c Config) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return errors.New("set WireGuard peers: the mesh is closed")
	}
	var refused []Refused
	c.Peers, refused = admit(c.Peers, m.table.Load().unchanged(), m.own)
	m.refused.Store(&refused)
	want := make(map[PublicKey]Peer, len(c.Peers))
	for _, p := range c.Peers {
		if !p.PublicKey.IsZero() {
			p.Endpoint = unmapped(p.Endpoint)
			want[p.PublicKey] = p
		}
	}
	old := m.applied
	if m.dirty {
		old = nil
	}
	text := delta(old, want)
	// The table comes first: packets of a new peer are accepted at once, and packets to a removed peer are dropped.
	m.table.Store(m.nextTable(c))
	m.gate.SetPeers(m.places)
	if m.dirty {
		text = "replace_peers=true\n" + text
	}
	m.dirty = true
	if err := m.dev.IpcSet(text); err != nil {
		return fmt.Errorf("set WireGuard peers: %w", err)
	}
	m.dirty, m.applied = false, want
	m.inflight.Store(0) // packets under way to a removed peer are never reported as sent
	m.ring.wake()
	m.met.begin()
	m.kick()
	return nil
}

// Refused returns the peers that the last Set left out.
func (m *Mesh) Refused() []Refused { return *m.refused.Load() }

// nextTable returns the table for c. Peers whose ID and key are the same keep their state.
func (m *Mesh) nextTable(c Config) *table {
	old := m.table.Load()
	peers := make([]*peer, 0, len(c.Peers))
	for _, cfg := range c.Peers {
		p := old.byID[cfg.ID]
		if p == nil || p.key != cfg.PublicKey {
			p = &peer{id: cfg.ID, key: cfg.PublicKey}
			p.credit.Store(stagedMax)
			p.mtu.Store(int32(innerMTU(m.o.UnderlayMTU, cfg.Endpoint.Addr().Unmap().Is4())))
		}
		p.partial.Store(cfg.TakesPartial)
		peers = append(peers, p)
	}
	return newTable(peers, slices.Clone(c.Peers))
}

// Send implements netstack.Link. It takes p's buffer when that has room for any frame, and leaves a free one in its
// place; otherwise it copies p. It waits while the ring has no room for p's lane.
func (m *Mesh) Send(p *packet.Packet, id uint64, via *packet.Encap) {
	to := m.table.Load().byID[id]
	if to == nil || to.key.IsZero() {
		m.stats.noPeer.Add(1)
		return
	}
	e := entry{pkt: *p, peer: to}
	e.pkt.Tail = nil
	if via != nil {
		e.via, e.wrap = *via, true
	}
	if p.Buf != nil && cap(p.Buf) >= packet.MaxFrame {
		e.buf = p.Buf[:packet.MaxFrame]
		if free := m.ring.exchange(&e); free != nil {
			p.Buf, p.IP = free, nil
		}
		return
	}
	// The caller keeps this buffer: it belongs to the tunnel, or it is too short to be exchanged.
	var l *lane
	if e.buf, l = m.ring.take(to, p.Tuple.Src); l == nil {
		return
	}
	n := packet.HeadLen + copy(e.buf[packet.HeadLen:], p.IP)
	for _, t := range p.Tail {
		n += copy(e.buf[n:], t)
	}
	e.pkt.Buf, e.pkt.IP = e.buf[:n], e.buf[packet.HeadLen:n]
	m.ring.put(l, &e)
}

// MTU implements netstack.Link: the largest IP packet in bytes that the path to the peer is believed to carry in one
// piece.
func (m *Mesh) MTU(id uint64) int {
	if p := m.table.Load().byID[id]; p != nil {
		return int(p.mtu.Load())
	}
	return innerMTU(m.o.UnderlayMTU, false)
}

// forbidden reports whether datagrams from a are dropped, so that no endpoint roams to a pod or Service.
func (m *Mesh) forbidden(a netip.Addr) bool {
	return m.table.Load().forbidden(a) || m.o.Forbidden != nil && m.o.Forbidden(a)
}

// noteTooBig has the prober check the paths of the peers whose address is dst.
func (m *Mesh) noteTooBig(dst netip.AddrPort) {
	m.stats.tooBig.Add(1)
	t := m.table.Load()
	for i, p := range t.peers {
		if a := p.address.Load(); a != nil && *a == dst || slices.Contains(t.addrs[i], dst) {
			p.tooBig.Store(true)
		}
	}
	m.kick()
}

// kick has the prober look at all peers now.
func (m *Mesh) kick() {
	select {
	case m.wakeProber <- struct{}{}:
	default:
	}
}
