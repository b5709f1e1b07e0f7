package netstack

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/netstack/exit"
	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/fragment"
	"tapestry.dev/tapestry/netstack/handover"
	"tapestry.dev/tapestry/netstack/knock"
	"tapestry.dev/tapestry/netstack/pace"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/poll"
	"tapestry.dev/tapestry/netstack/quota"
	"tapestry.dev/tapestry/netstack/reassemble"
	"tapestry.dev/tapestry/netstack/refusal"
	"tapestry.dev/tapestry/netstack/stack"
	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/netstack/tcprelay"
	"tapestry.dev/tapestry/netstack/udprelay"
)

// Options configures a Path for its whole life.
type Options struct {
	// Flows is the flow table, usually in memory that outlives the process.
	Flows *flow.Table
	// Link is the way to other nodes; nil for a node alone.
	Link Link
	// Observer is told of flows; Flows tells it of their answers and ends. nil for none.
	Observer Observer
	// Steer says what to do with the SYN of a client on another node, which a Service has led to an endpoint of this
	// node, t's destination. It returns Picked with another backend if that endpoint gets no new connections any more;
	// the Balancer has to know that backend. wrapped is set where the client is outside of the cluster, and came to the
	// other node's host socket or host TAP. It must be safe for concurrent use and allocate nothing. t is borrowed. nil
	// steers nothing.
	Steer func(t *packet.Tuple, wrapped bool) packet.Choice
	// Another says what to do with a SYN that it, or the Balancer, had sent to the refused backends, which refused it:
	// it returns Picked with another backend for the Service port at t's destination, or any other Choice if there is
	// none. It must be safe for concurrent use and allocate nothing. t and refused are borrowed. nil knows none.
	Another func(t *packet.Tuple, refused []uint64) packet.Choice
	// Watcher is told how flows to backends go. nil for none.
	Watcher Watcher
	// Logger gets events that no caller waits for; nil discards them.
	Logger *slog.Logger
	// MTU is the pods' MTU until the first Config says otherwise.
	MTU int
	// EgressIdle is how long an idle UDP conversation with the outside is kept; 0 means two minutes.
	EgressIdle time.Duration
	// Shares bounds what pods and clients use of the stack.
	Shares stack.Shares
	// Poller watches the stack's host sockets. The caller owns it and closes it after the Path. With nil the stack
	// makes one of its own.
	Poller *poll.Poller
	// Asks is the Asks of tcprelay.Options.
	Asks func(packet.Endpoint) bool
	// HoldTCP is the Hold of tcprelay.Options.
	HoldTCP *tcprelay.Hold
	// HoldUDP is the Hold of udprelay.Options.
	HoldUDP *udprelay.Hold
	// Begin, if not nil, is closed when attachments may be read, after the first Set, and before Stop and Close.
	Begin <-chan struct{}
	// Now is the monotonic clock of the attachments' limits and of fragments; nil means time.Now.
	Now func() time.Time
}

// Path is the packet path of one node: attachments, tables, the stack and the Link. Its methods are safe for concurrent
// use.
type Path struct {
	log      *slog.Logger
	flows    *flow.Table
	link     Link
	observer Observer
	watcher  Watcher
	steer    func(*packet.Tuple, bool) packet.Choice
	another  func(*packet.Tuple, []uint64) packet.Choice
	outside  knock.Ring // SYNs of routed clients

	now         func() time.Time
	attachments attachments
	snapshot    atomic.Pointer[snapshot]
	handover    *handover.Handover
	exits       atomic.Pointer[exit.Table] // nil: everything leaves over host sockets
	ready       chan struct{}              // closed by the first Set; before, no attachment is read (fail closed)
	begin       <-chan struct{}            // Options.Begin
	stack       *stack.Stack
	fragments   *fragment.Table
	pieces      *reassemble.Table // what other nodes cut for narrow paths
	// refusals limits ICMP errors sent (RFC 1812 4.3.2.8, RFC 4443 2.4 f).
	refusals *refusal.Limit

	yield   func() // what is sent to the Link makes the tunnel's goroutines ready
	workers workers
	running sync.WaitGroup

	mu      sync.Mutex // guards the fields below, and Set
	quotas  map[string]quota.Quota
	stopped bool
	closed  bool
}

// New makes a Path. It forwards nothing before the first Set.
func New(o Options) (*Path, error) {
	if o.Flows == nil {
		return nil, errors.New("netstack: Options.Flows is required")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Steer == nil {
		o.Steer = func(*packet.Tuple, bool) packet.Choice { return packet.Choice{} }
	}
	if o.Another == nil {
		o.Another = func(*packet.Tuple, []uint64) packet.Choice { return packet.Choice{} }
	}
	yield := func() {}
	if o.Poller != nil {
		yield = o.Poller.Yield
	}
	path := &Path{
		now: o.Now, log: o.Logger, flows: o.Flows, link: o.Link, observer: o.Observer, watcher: o.Watcher, steer: o.Steer, another: o.Another, ready: make(chan struct{}), begin: o.Begin, yield: yield,
		refusals:  refusal.NewLimit(o.Now, rand.Uint64()),
		fragments: fragment.New(fragment.Options{Max: maxFragmented, MaxWaiting: maxWaiting, Now: o.Now}),
		pieces:    reassemble.New(reassemble.Options{Max: maxCut, Longest: addressing.MinMTU, Now: o.Now}),
	}
	if o.Observer != nil {
		o.Flows.OnEnd(o.Observer.Ended)
		o.Flows.OnAnswer(o.Observer.Answered)
	}
	if o.Watcher != nil {
		o.Flows.OnChange(o.Watcher.Changed)
	}
	path.handover = handover.New(handover.Options{Flows: o.Flows, Exits: path.exits.Load, Tell: path.handOver, Now: o.Now})
	path.attachments.table.Store(&attachmentTable{})
	path.workers.path = path
	var err error
	if path.stack, err = stack.New(stack.Options{
		Send: path.fromStack, SendIP: path.fromRelay, Poller: o.Poller, MTU: o.MTU, Idle: o.EgressIdle, Pace: path.pace,
		Refusals: path.refusals, Owner: path.ownerOf, Shares: o.Shares, Far: path.far, Asks: o.Asks, HoldTCP: o.HoldTCP, HoldUDP: o.HoldUDP,
	}); err != nil {
		return nil, err
	}
	return path, nil
}

// Stack returns the part of the node that ends connections.
func (p *Path) Stack() *stack.Stack { return p.stack }

// Set replaces what the node knows of the cluster. policy is nil where everything is permitted. Flows survive; one that
// may no longer go on is found at its next packet. Set does nothing when all its arguments equal the previous ones
// (Balancer and Policy are compared by ==): then no flow is judged again. The caller must not change anything that c
// refers to afterwards.
func (p *Path) Set(c Config, b Balancer, policy Policy) error {
	if b == nil {
		return errors.New("netstack: Set needs a Balancer")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	before := p.snapshot.Load()
	generation := uint32(1)
	if before != nil {
		if before.isOf(&c, b, policy) {
			return nil
		}
		generation = before.generation + 1
	}
	s := compile(c, b, policy, generation)
	g := stack.Config{Local: c.LocalAddrs, MTU: c.MTU}
	for _, a := range s.stackAddrs {
		g.Addrs = append(g.Addrs, a.Netip())
	}
	if err := p.stack.Set(g); err != nil {
		return fmt.Errorf("netstack: %w", err)
	}
	p.snapshot.Store(s)
	if before == nil {
		close(p.ready)
	}
	return nil
}

// Attach adds an attachment and starts reading from its device. The Path closes the device at Detach or Close.
func (p *Path) Attach(c AttachmentConfig, dev Device) error {
	att := &Attachment{AttachmentConfig: c, dev: dev, lacks: tap.AllOffloads &^ dev.Offloads()}
	att.limit = pace.New(c.Limit, p.now, func(frame []byte) { p.write(att, frame) })
	for _, a := range c.Addrs {
		att.addrs = append(att.addrs, packet.AddrFrom(a))
	}
	att.owner = flow.OwnerNode
	if c.Kind == PodTAP && len(att.addrs) > 0 {
		att.owner = ownerAt(att.addrs[0])
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return fmt.Errorf("attach %s: the node is closed", c.Name)
	}
	p.measure(att)
	p.lead(att)
	if err := p.attachments.add(att); err != nil {
		return err
	}
	p.running.Add(1)
	go p.read(att)
	return nil
}

// write writes a frame that waited for att's limit.
func (p *Path) write(att *Attachment, frame []byte) {
	w := p.workers.get()
	defer p.workers.put(w)
	if fault := w.pkt.ParseFrame(frame); fault != packet.Good {
		w.drops[faultReason(fault)].Add(1)
	} else if !w.write(&w.pkt, att) {
		w.drops[TAPDown].Add(1)
	}
}

func (p *Path) read(att *Attachment) {
	defer p.running.Done()
	<-p.ready
	if p.begin != nil {
		<-p.begin
	}
	w := p.workers.get()
	defer p.workers.put(w)
	w.from = att
	if err := att.dev.Run(w.fromTAP, w.rest); err != nil {
		p.log.Error("an attachment stopped", "attachment", att.Name, "err", err)
		if _, still := p.attachments.remove(att.Name, att); still {
			att.close()
		}
	}
}

// Detach removes an attachment and closes its device. It reports whether there was one.
func (p *Path) Detach(name string) bool {
	att, ok := p.attachments.remove(name, nil)
	if !ok {
		return false
	}
	att.close()
	for _, a := range att.Addrs {
		p.stack.Forget(a)
	}
	return true
}

// Attachments returns the counters of every attachment, sorted by name.
func (p *Path) Attachments() []AttachmentStats {
	t := p.attachments.table.Load()
	out := make([]AttachmentStats, 0, len(t.byName))
	for _, att := range t.byName {
		a := AttachmentStats{
			Name: att.Name, Addrs: att.Addrs,
			ToPackets: att.toTAP.packets.Load(), ToBytes: att.toTAP.bytes.Load(),
			FromPackets: att.fromTAP.packets.Load(), FromBytes: att.fromTAP.bytes.Load(),
			Down: att.down.Load(), OverLimit: att.overLimit.Load(), Offloads: att.dev.Offloads().String(),
		}
		if m := att.meter.Load(); m != nil {
			a.Quota, a.OverPackets, a.OverFlows = m.Quota, m.OverPackets.Load(), m.OverFlows.Load()
		}
		out = append(out, a)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

// Stats holds the numbers of packets since start, by Verdict, and of dropped ones by DropReason.
type Stats struct {
	Verdicts map[string]uint64
	Drops    map[string]uint64
}

// Stats sums the workers' counters. Reasons and verdicts that did not occur are left out.
func (p *Path) Stats() Stats {
	s := p.workers.stats()
	if n := p.fragments.Lost(); n > 0 {
		s.Verdicts[Dropped.String()] += n
		s.Drops[LostFragment.String()] += n
	}
	return s
}

// FromLink takes a batch of decrypted packets from one peer, in order. packets is borrowed.
func (p *Path) FromLink(id uint64, packets [][]byte) {
	w := p.workers.get()
	w.fromLink(id, packets)
	p.workers.put(w)
}

// fromStack takes a superframe that the stack sent, and returns a buffer in exchange.
func (p *Path) fromStack(frame []byte) []byte {
	w := p.workers.get()
	defer p.workers.put(w)
	return w.fromStack(frame)
}

// fromRelay takes an IP packet that one of the stack's relays made. ip is borrowed.
func (p *Path) fromRelay(ip []byte, vnet packet.VNetHdr) {
	w := p.workers.get()
	defer p.workers.put(w)
	w.fromRelay(ip, vnet)
}

// pace tells a sender inside the node, which can wait, whether the pod with this address has a limit, and how long to
// wait now.
func (p *Path) pace(pod packet.Addr) (limited bool, wait time.Duration) {
	att := p.attachments.table.Load().byAddr[pod]
	if att == nil || att.limit == nil {
		return false, 0
	}
	return true, att.limit.Wait()
}

// Local reports whether a pod of this node has the address.
func (p *Path) Local(a netip.Addr) bool {
	return p.attachments.table.Load().byAddr[packet.AddrFrom(a)] != nil
}

// far tells a relay whether the pod or node at an address is reached over the Link, and the largest packet in bytes
// that fits there, with the header that a client's address takes.
func (p *Path) far(a packet.Addr) (mtu int, ok bool) {
	s := p.snapshot.Load()
	if s == nil || p.link == nil {
		return 0, false
	}
	r := p.route(s, &a)
	if r.kind != toPeer {
		return 0, false
	}
	mtu = p.link.MTU(r.peer.ID)
	if r.peer.encap != nil {
		mtu -= addressing.Encap(!r.peer.encap.Dst.Is4())
	}
	if !a.Is4() {
		mtu = max(mtu, addressing.MinMTU) // as toPeer has it
	}
	if s.MTU > 0 {
		mtu = min(mtu, s.MTU)
	}
	return mtu, true
}

// Relayed reports whether Stack.Join carries connections to an address: a pod's of this node, or one behind another
// node.
func (p *Path) Relayed(a netip.Addr) bool {
	_, far := p.far(packet.AddrFrom(a))
	return far || p.Local(a)
}

// Attached reports whether there is an attachment with this name. An attachment whose device failed is removed.
func (p *Path) Attached(name string) bool {
	return p.attachments.table.Load().byName[name] != nil
}

// Resume goes on with what the process before relayed, for the pods that are attached, and for clients of pods of other
// nodes. It must be called after Set, and before Options.Begin is closed.
func (p *Path) Resume() (conns tcprelay.Resumed, ports int) { return p.stack.Resume(p.Local, p.begin) }

// Run keeps the flow table's clock and sweeps it, and hands flows over to their next egress gateway, until ctx ends.
func (p *Path) Run(ctx context.Context) {
	var both sync.WaitGroup
	both.Go(func() { p.handover.Run(ctx) })
	p.flows.Run(ctx)
	both.Wait()
}

// Stop closes the devices of all attachments, so that frames wait for the next agent. The flow table stays as it is.
// The attachments keep their addresses, so that packets which the Link still brings for them are dropped and not
// refused: their connections go on in the next agent.
func (p *Path) Stop() {
	p.mu.Lock()
	if p.stopped {
		p.mu.Unlock()
		return
	}
	p.stopped = true
	if p.snapshot.Load() == nil {
		close(p.ready)
	}
	p.mu.Unlock()
	for _, att := range p.attachments.table.Load().byName {
		att.close()
	}
	p.running.Wait()
}

// Close stops the attachments, and then the stack.
func (p *Path) Close() error {
	p.Stop()
	p.mu.Lock()
	closed := p.closed
	p.closed = true
	p.mu.Unlock()
	if !closed {
		p.stack.Close()
	}
	return nil
}
