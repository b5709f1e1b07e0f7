package advertise

import (
	"cmp"

	"tapestry.dev/tapestry/announce"
	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/v1alpha1"
)

// The values of spec.bfd that are not said, as the definition of BGPPeers has them: where there is no API server nobody
// else sets them.
const (
	bfdInterval   = 300 // milliseconds
	bfdMultiplier = 3
)

// withBFD returns a router with the BFD that its BGPPeer asks for; nil is none. What does not go with BFD has its BFD
// left out and told, so that the session is there as it is without.
func (r *rules) withBFD(ref kube.Ref, s *v1alpha1.BFD, p announce.Peer) (announce.Peer, bool) {
	if s == nil {
		return p, true
	}
	transmit, receive := cmp.Or(s.TransmitMilliseconds, bfdInterval), cmp.Or(s.ReceiveMilliseconds, bfdInterval)
	multiplier := cmp.Or(s.Multiplier, bfdMultiplier)
	for _, n := range []struct {
		field            string
		value, low, high int32
	}{{"transmitMilliseconds", transmit, 100, 10_000}, {"receiveMilliseconds", receive, 100, 10_000}, {"multiplier", multiplier, 2, 50}} {
		if n.value < n.low || n.value > n.high {
			r.say.Errorf(ref, "spec.bfd."+n.field, "%d is out of range: expected %d to %d", n.value, n.low, n.high)
			return announce.Peer{}, false
		}
	}
	for _, other := range []struct {
		is         bool
		field, why string
	}{
		{p.Multihop > 0, "multihop", "is for routers on the same link"},
		{p.Source.IsValid(), "sourceAddress", "leaves from the address that the kernel chooses"},
		{p.GracefulRestart > 0, "gracefulRestartSeconds", "has routes go as soon as the announcer ends"},
	} {
		if other.is {
			r.say.Warnf(ref, "spec.bfd", "%s, and is not used: remove it, or spec.%s", other.why, other.field)
			return p, true
		}
	}
	p.BFD = announce.BFD{Transmit: uint16(transmit), Receive: uint16(receive), Multiplier: uint8(multiplier)}
	return p, true
}
