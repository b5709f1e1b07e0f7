package netstack

import (
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/tap"
)

// countsOn returns the offloads that a frame with this virtio-net header relies on. The header was checked, or this
// node made it.
func countsOn(v *packet.VNetHdr) tap.Offloads {
	switch v.GSOType &^ packet.GSOECN {
	case packet.GSOTCPv4:
		return tap.Csum | tap.TSO4
	case packet.GSOTCPv6:
		return tap.Csum | tap.TSO6
	case packet.GSOUDPL4:
		return tap.Csum | tap.USO
	}
	if v.Flags&packet.NeedsCsum != 0 {
		return tap.Csum
	}
	return 0
}

// toPlainTAP does in software what the TAP cannot do: it writes segments with full checksums, one by one. So frames of
// a pod with all offloads, and those coalesced from the Link, reach a TAP without them. It returns false when the TAP
// refused a segment; the rest is then not tried.
func (w *worker) toPlainTAP(p *packet.Packet, att *Attachment) bool {
	w.segments.Reset(p, nil)
	if need := packet.HeadLen + w.segments.Size(); len(w.segment) < need {
		w.segment = make([]byte, need)
	}
	plain := packet.Packet{EtherType: p.EtherType}
	plain.PutHead(w.segment, tap.RouterMAC, att.MAC)
	for {
		n := w.segments.Next(w.segment[packet.HeadLen:])
		if n == 0 {
			break
		}
		if att.dev.Write(w.segment[:packet.HeadLen+n]) != nil {
			att.down.Add(1)
			return false
		}
	}
	att.toTAP.add(p.Len())
	return true
}
