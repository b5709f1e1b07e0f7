package services

import (
	"cmp"
	"net/netip"
	"slices"

	"tapestry.dev/tapestry/netstack/packet"
)

// Socket is a port at one of this node's own addresses that is an address of a load balancer. The host has to listen
// there.
type Socket struct {
	Service  string // "namespace/name"
	Addr     netip.Addr
	Port     uint16
	Protocol packet.Proto
	Proxy    uint8 // see Service.Proxy
}

// Sockets returns the Sockets at which clients outside get a backend, sorted. With the Local policy and no backend on
// this node there is none, so that clients are refused and use other nodes.
func (t *Table) Sockets() []Socket {
	var list []Socket
	for _, i := range t.atOwn {
		f := &t.fronts[i]
		if t.served(f) != ServedAll {
			continue
		}
		s := t.config.Services.At(int(f.service))
		if a := f.key.addr.Netip(); slices.Contains(s.ExternalIPs, a) || slices.Contains(s.SocketIPs, a) {
			list = append(list, Socket{s.Namespace + "/" + s.Name, a, f.key.port, f.key.proto, s.Proxy})
		}
	}
	slices.SortFunc(list, func(a, b Socket) int {
		return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Protocol, b.Protocol))
	})
	return list
}
