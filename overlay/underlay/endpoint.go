package underlay

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

// maxEndpoints is how many endpoints are kept at most, since anybody can send from ever new addresses.
const maxEndpoints = 4096

// way identifies an endpoint: a far address, and the address of this host that it wrote to, invalid when it has not
// written.
type way struct {
	ap    netip.AddrPort // IPv4 unmapped
	local netip.Addr
}

// endpoint is a far address. There is one per way. Only its source changes.
type endpoint struct {
	ap     netip.AddrPort // IPv4 unmapped
	v4     unix.RawSockaddrInet4
	v6     unix.RawSockaddrInet6 // IPv4 mapped
	source source
}

var _ conn.Endpoint = (*endpoint)(nil)

// endpoint returns the endpoint of a far address to which datagrams leave from the address that the route chooses.
func (b *Bind) endpoint(ap netip.AddrPort) *endpoint { return b.endpointAt(ap, netip.Addr{}) }

// endpointAt returns the endpoint of a far address that wrote to local. Endpoints are kept, so that a datagram from a
// known address allocates nothing.
func (b *Bind) endpointAt(ap netip.AddrPort, local netip.Addr) *endpoint {
	w := way{netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), local}
	b.epMu.Lock()
	defer b.epMu.Unlock()
	if e := b.endpoints[w]; e != nil {
		e.source.gone.Store(false)
		return e
	}
	if len(b.endpoints) >= maxEndpoints {
		clear(b.endpoints) // WireGuard's peers still refer to theirs
	}
	e := newEndpoint(w.ap)
	e.source.init(local)
	b.endpoints[w] = e
	return e
}

func (b *Bind) clearEndpoints() {
	b.epMu.Lock()
	clear(b.endpoints)
	b.epMu.Unlock()
}

func newEndpoint(ap netip.AddrPort) *endpoint {
	e := &endpoint{ap: ap}
	e.v6.Family = unix.AF_INET6
	e.v6.Addr = ap.Addr().As16()
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&e.v6.Port))[:], ap.Port())
	if zone := ap.Addr().Zone(); zone != "" {
		e.v6.Scope_id = zoneIndex(zone)
	}
	if ap.Addr().Is4() {
		e.v4.Family = unix.AF_INET
		e.v4.Addr = ap.Addr().As4()
		e.v4.Port = e.v6.Port
	}
	return e
}

// sockaddr returns the raw address, and its length in bytes, for a socket of the given family; nil when such a socket
// cannot reach e.
func (e *endpoint) sockaddr(is6 bool) (*byte, uint32) {
	switch {
	case is6:
		return (*byte)(unsafe.Pointer(&e.v6)), unix.SizeofSockaddrInet6
	case e.v4.Family == unix.AF_INET:
		return (*byte)(unsafe.Pointer(&e.v4)), unix.SizeofSockaddrInet4
	}
	return nil, 0
}

// addrPort returns the address that recvmmsg stored; invalid for another family than IPv4 and IPv6.
func addrPort(sa *unix.RawSockaddrInet6) netip.AddrPort {
	switch sa.Family {
	case unix.AF_INET:
		v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		return netip.AddrPortFrom(netip.AddrFrom4(v4.Addr), networkPort(&v4.Port))
	case unix.AF_INET6:
		a := netip.AddrFrom16(sa.Addr).Unmap()
		if a.IsLinkLocalUnicast() && a.Is6() {
			a = a.WithZone(zoneName(sa.Scope_id))
		}
		return netip.AddrPortFrom(a, networkPort(&sa.Port))
	}
	return netip.AddrPort{}
}

func networkPort(p *uint16) uint16 { return binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(p))[:]) }

// ClearSrc implements conn.Endpoint: from now on the kernel chooses the source by route.
func (e *endpoint) ClearSrc() { e.source.gone.Store(true) }

// SrcToString implements conn.Endpoint.
func (e *endpoint) SrcToString() string {
	if a := e.SrcIP(); a.IsValid() {
		return a.String()
	}
	return ""
}

// SrcIP implements conn.Endpoint.
func (e *endpoint) SrcIP() netip.Addr {
	if e.source.gone.Load() {
		return netip.Addr{}
	}
	return e.source.addr
}

// AddrPort returns the far address.
func (e *endpoint) AddrPort() netip.AddrPort { return e.ap }

// DstIP implements conn.Endpoint.
func (e *endpoint) DstIP() netip.Addr { return e.ap.Addr() }

// DstToString implements conn.Endpoint.
func (e *endpoint) DstToString() string { return e.ap.String() }

// DstToBytes implements conn.Endpoint. WireGuard binds its cookies to these bytes.
func (e *endpoint) DstToBytes() []byte {
	b, _ := e.ap.MarshalBinary()
	return b
}
