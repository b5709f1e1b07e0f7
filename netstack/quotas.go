package netstack

import (
	"maps"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/quota"
)

// SetQuotas replaces what pods may send, by the names of their attachments; a pod that is not in quotas may send what
// it likes. Attachments that come later have their quota from the beginning. A quota that does not change goes on with
// what was used of it. The caller must not change quotas afterwards.
func (p *Path) SetQuotas(quotas map[string]quota.Quota) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if maps.Equal(p.quotas, quotas) {
		return
	}
	p.quotas = quotas
	for _, att := range p.attachments.table.Load().byName {
		p.measure(att)
	}
}

// measure brings the attachment's quota into force. The caller holds p.mu.
func (p *Path) measure(att *Attachment) {
	if att.Kind != PodTAP {
		return
	}
	want, was := p.quotas[att.Name], att.meter.Load()
	if was == nil || was.Quota != want {
		att.meter.Store(quota.NewMeter(want, p.now))
	}
}

// pays reports whether the packet is within what its pod may send; if not, it ends the journey.
func (j *journey) pays(m *quota.Meter) bool {
	return m.Packet(segments(j.packet)) || j.drop(OverPackets)
}

// mayBeginOne reports whether the sender may begin one more flow; if not, it ends the journey. A client that is not
// answered tries again a second later, and so waits by itself.
func (j *journey) mayBeginOne() bool {
	return j.from == nil || j.from.paysFlow() || j.drop(OverFlows)
}

// paysFlow reports whether a flow of the attachment's may begin, and pays for it.
func (a *Attachment) paysFlow() bool {
	m := a.meter.Load()
	return m == nil || m.Flow()
}

// segments returns the number of packets that p becomes on a wire.
func segments(p *packet.Packet) int {
	if p.VNet.GSOType == packet.GSONone {
		return 1
	}
	size := int(p.VNet.GSOSize)
	return max(1, (p.Len()-p.Payload+size-1)/size)
}
