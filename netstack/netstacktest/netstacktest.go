// Package netstacktest provides, for tests, an attachment's device in memory, a Link that only records, packets to send
// through them, and a pod with a stack of its own.
package netstacktest

import (
	"io"
	"sync"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/tap"
)

// Device is an attachment's device in memory. Frames lists what the node has written, and Send sends a frame as the
// pod.
type Device struct {
	offloads tap.Offloads

	toNode chan []byte
	toPod  chan []byte
	done   chan struct{}
	once   sync.Once
}

// NewDevice makes a device with all offloads. It holds up to 1024 frames in each direction.
func NewDevice() *Device { return NewDeviceWith(tap.AllOffloads) }

// NewDeviceWith makes a device with some of the offloads.
func NewDeviceWith(offloads tap.Offloads) *Device {
	return &Device{offloads: offloads, toNode: make(chan []byte, 1024), toPod: make(chan []byte, 1024), done: make(chan struct{})}
}

// Run implements netstack.Device.
func (d *Device) Run(handle func([]byte) []byte, rest func()) error {
	for buf := make([]byte, packet.MaxFrame); ; {
		select {
		case f := <-d.toNode:
			buf = buf[:cap(buf)]
			buf = handle(buf[:copy(buf, f)])
			if rest != nil {
				rest()
			}
		case <-d.done:
			return nil
		}
	}
}

// Write implements netstack.Device. When too many frames wait to be read, the device refuses more, as a TAP does.
func (d *Device) Write(frame []byte) error { return d.Writev([][]byte{frame}) }

// Writev implements netstack.Device.
func (d *Device) Writev(iov [][]byte) error {
	var f []byte
	for _, b := range iov {
		f = append(f, b...)
	}
	select {
	case <-d.done:
		return io.ErrClosedPipe
	default:
	}
	select {
	case d.toPod <- f:
		return nil
	default:
		return io.ErrShortWrite
	}
}

// Offloads implements netstack.Device.
func (d *Device) Offloads() tap.Offloads { return d.offloads }

// Close implements netstack.Device.
func (d *Device) Close() error {
	d.once.Do(func() { close(d.done) })
	return nil
}

// Again returns a device for the next node after d was closed. Frames that wait in d, in both directions, wait in it.
func (d *Device) Again() *Device {
	return &Device{offloads: d.offloads, toNode: d.toNode, toPod: d.toPod, done: make(chan struct{})}
}

// Send sends a superframe of the pod to the node.
func (d *Device) Send(frame []byte) { d.toNode <- frame }

// Frames returns the frames that the node has written to the pod.
func (d *Device) Frames() <-chan []byte { return d.toPod }

// Sent is one packet that a Link was given.
type Sent struct {
	Peer uint64
	Via  *packet.Encap
	// Packets are the IP packets that would go into the tunnel, encapsulated when Via is set.
	Packets [][]byte
}

// Link records what it is given.
type Link struct {
	mu   sync.Mutex
	size int
	sent chan Sent
}

// NewLink makes a Link with an MTU of mtu bytes.
func NewLink(mtu int) *Link { return &Link{size: mtu, sent: make(chan Sent, 1024)} }

// SetMTU changes the MTU to every peer.
func (l *Link) SetMTU(mtu int) {
	l.mu.Lock()
	l.size = mtu
	l.mu.Unlock()
}

// MTU implements netstack.Link.
func (l *Link) MTU(uint64) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.size
}

// Send implements netstack.Link.
func (l *Link) Send(p *packet.Packet, peer uint64, via *packet.Encap) {
	s := Sent{Peer: peer, Via: via}
	var seg packet.Segmenter
	for seg.Reset(p, via); ; {
		b := make([]byte, 65535)
		n := seg.Next(b)
		if n == 0 {
			break
		}
		s.Packets = append(s.Packets, b[:n])
	}
	l.sent <- s
}

// Sent returns the packets that the Link was given.
func (l *Link) Sent() <-chan Sent { return l.sent }
