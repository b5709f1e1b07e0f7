package advertise

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/labels"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/announce"
	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/v1alpha1"
)

// router is a BGPPeer that can be understood.
type router struct {
	announce.Peer
	ref kube.Ref
	on  labels.Selector
}

// readRouters finds the routers of all nodes.
func (r *rules) readRouters() {
	for _, obj := range r.objs.BGPPeers {
		ref := kube.RefOf(obj)
		on, ok := r.selector(ref, "spec.nodeSelector", obj.Spec.NodeSelector)
		if p, also := r.peer(obj); ok && also {
			r.routers = append(r.routers, router{p, ref, on})
		}
	}
}

// speaking returns the routers of a node with these labels: of several at one address the first. twice is called with
// each of the others, and the one that is there already.
func (r *rules) speaking(node labels.Set, twice func(p, first *router)) (list []*router) {
	taken := map[netip.AddrPort]*router{}
	for i := range r.routers {
		p := &r.routers[i]
		if !p.on.Matches(node) {
			continue
		}
		if first := taken[p.Address]; first != nil {
			twice(p, first)
			continue
		}
		taken[p.Address] = p
		list = append(list, p)
	}
	return list
}

// isTaken is what is told of a router whose address is another one's on a node.
const isTaken = "%s is BGPPeer %q on node %s already: remove one of the two, or have them select different nodes"

// choosePeers finds the routers of this node.
func (r *rules) choosePeers() {
	if r.self == nil {
		return
	}
	for _, p := range r.speaking(r.self, func(p, first *router) {
		r.say.Errorf(p.ref, "spec.address", isTaken, p.Address, first.Name, r.node)
	}) {
		r.peers = append(r.peers, p.Peer)
	}
}

// peer reads a BGPPeer. What of it an API server would have refused is told.
func (r *rules) peer(obj *v1alpha1.BGPPeer) (announce.Peer, bool) {
	ref, s := kube.RefOf(obj), &obj.Spec
	addr, err := netip.ParseAddr(s.Address)
	if err != nil || addressing.Special(addr) != "" {
		r.say.Errorf(ref, "spec.address", "%q is no address of a router: expected one like 192.0.2.1", s.Address)
		return announce.Peer{}, false
	}
	port := s.Port
	if port == 0 {
		port = 179
	}
	const asns = 1<<32 - 1
	for _, n := range []struct {
		field     string
		value     int64
		low, high int64
	}{{"spec.peerASN", s.PeerASN, 1, asns}, {"spec.myASN", s.MyASN, 1, asns}, {"spec.port", int64(port), 1, 65535}, {"spec.multihop", int64(s.Multihop), 0, 255},
		{"spec.holdTimeSeconds", int64(s.HoldTimeSeconds), 0, 65535}, {"spec.gracefulRestartSeconds", int64(s.GracefulRestartSeconds), 0, 4095}} {
		if n.value < n.low || n.value > n.high {
			r.say.Errorf(ref, n.field, "%d is out of range: expected %d to %d", n.value, n.low, n.high)
			return announce.Peer{}, false
		}
	}
	p := announce.Peer{
		Name: obj.Name, Address: netip.AddrPortFrom(addr.Unmap(), uint16(port)), ASN: uint32(s.PeerASN), MyASN: uint32(s.MyASN), PasswordKey: s.PasswordKey,
		Multihop: uint8(s.Multihop), HoldTime: uint16(s.HoldTimeSeconds), GracefulRestart: uint16(s.GracefulRestartSeconds),
	}
	if p.HoldTime < 3 { // RFC 4271, section 4.2
		p.HoldTime = 90
	}
	if p.Multihop > 0 && p.ASN == p.MyASN {
		r.say.Warnf(ref, "spec.multihop", "is for routers of another ASN, and not used: remove it")
		p.Multihop = 0
	}
	if strings.ContainsAny(p.PasswordKey, "/\\") || p.PasswordKey == "." || p.PasswordKey == ".." {
		r.say.Errorf(ref, "spec.passwordKey", "%q is no key of a Secret: expected letters, digits, dashes, dots and underscores", p.PasswordKey)
		return announce.Peer{}, false
	}
	if s.SourceAddress != "" {
		p.Source, err = netip.ParseAddr(s.SourceAddress)
		if err != nil || p.Source.Is4() != p.Address.Addr().Is4() {
			r.say.Errorf(ref, "spec.sourceAddress", "%q is no address of the family of %s: expected an address of the node", s.SourceAddress, p.Address.Addr())
			return announce.Peer{}, false
		}
	}
	return r.withBFD(ref, s.BFD, p)
}

// attributes are what an advertisement says of its routes.
type attributes struct {
	Communities []string
	LocalPref   *uint32
}

func (r *rules) attributes(obj *v1alpha1.BGPAdvertisement) attributes {
	var a attributes
	for i, text := range obj.Spec.Communities {
		c, ok := community(text)
		if !ok {
			r.say.Errorf(kube.RefOf(obj), "spec.communities["+strconv.Itoa(i)+"]",
				"%q is no community, and is left out: expected two numbers up to 65535, like 65000:100, or three up to 4294967295", text)
			continue
		}
		a.Communities = append(a.Communities, c)
	}
	if n := obj.Spec.LocalPreference; n != nil {
		if *n < 0 || *n > 1<<32-1 {
			r.say.Errorf(kube.RefOf(obj), "spec.localPreference", "%d is out of range, and is left out: expected 0 to 4294967295", *n)
		} else {
			pref := uint32(*n)
			a.LocalPref = &pref
		}
	}
	for _, name := range obj.Spec.Peers {
		if !slices.ContainsFunc(r.objs.BGPPeers, func(p *v1alpha1.BGPPeer) bool { return p.Name == name }) {
			r.say.Warnf(kube.RefOf(obj), "spec.peers", "there is no BGPPeer %q: make it, or remove the name", name)
		}
	}
	return a
}

// community returns a community as announce.Route writes it.
func community(text string) (string, bool) {
	parts := strings.Split(text, ":")
	bits := map[int]int{2: 16, 3: 32}[len(parts)]
	if bits == 0 {
		return "", false
	}
	for i, p := range parts {
		n, err := strconv.ParseUint(p, 10, bits)
		if err != nil {
			return "", false
		}
		parts[i] = strconv.FormatUint(n, 10)
	}
	return strings.Join(parts, ":"), true
}
