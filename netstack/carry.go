package netstack

import (
	"errors"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/pingrelay"
	"tapestry.dev/tapestry/netstack/refusal"
	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/netstack/udprelay"
)

// carry does what the steps decided. If that fails, it changes the verdict.
func (w *worker) carry(s *snapshot, j *journey) {
	switch j.verdict {
	case ToTAP:
		if j.to.limit != nil && w.wait(j) {
			return
		}
		if !w.write(j.packet, j.to) {
			j.drop(TAPDown)
		}
	case ToLink:
		w.toLink(j)
	case ToStack:
		if j.outside {
			w.toHostSocket(j)
		} else {
			w.toStack(j)
		}
	case Dropped:
		if j.reason == Retried {
			w.askAnother(s, j.byStack())
		}
	}
	if j.verdict == Answered { // also by toHostSocket
		w.reply(s, j)
	}
}

// wait queues the packet when its attachment's limit has no room now and its sender has not waited already. It returns
// false when the packet may be written at once, and true when it was queued, or dropped because too many wait.
func (w *worker) wait(j *journey) bool {
	l := j.to.limit
	if l.Pass(j.packet.Len(), j.paced) {
		return false
	}
	if !l.Enqueue(j.packet, j.to.MAC) {
		j.to.overLimit.Add(1)
		j.drop(OverLimit)
	}
	return true
}

// write writes the packet to a TAP, regardless of its attachment's limit, and reports whether the TAP took it. The
// virtio-net header goes along: it was checked, or this node made it.
func (w *worker) write(p *packet.Packet, att *Attachment) bool {
	if att.lacks != 0 && countsOn(&p.VNet)&att.lacks != 0 {
		return w.toPlainTAP(p, att)
	}
	var err error
	if p.Buf != nil {
		p.PutHead(p.Buf, tap.RouterMAC, att.MAC)
		err = att.dev.Write(p.Buf[:packet.HeadLen+len(p.IP)])
	} else {
		p.PutHead(w.head[:], tap.RouterMAC, att.MAC)
		w.iov = append(append(w.iov[:0], w.head[:], p.IP), p.Tail...)
		err = att.dev.Writev(w.iov)
		clear(w.iov)
	}
	if err != nil {
		att.down.Add(1)
		return false
	}
	att.toTAP.add(p.Len())
	return true
}

// toLink sends the packet to another node, in fragments if it is too big and may be fragmented.
func (w *worker) toLink(j *journey) {
	p, to, mtu := j.packet, j.peer.ID, int(j.mtu)
	var encap *packet.Encap
	if j.wrap {
		encap = j.peer.encap
	}
	w.path.yield()
	if segmentLen(p) <= mtu {
		w.path.link.Send(p, to, encap)
		return
	}
	if len(w.fragment) < mtu {
		w.fragment = make([]byte, mtu)
	}
	p.Fragment(mtu, w.fragment, func(ip []byte) {
		if w.answer.ParseIP(ip) == packet.Good {
			w.path.link.Send(&w.answer, to, encap)
		}
	})
}

// toStack passes the packet to the stack, which does not verify checksums.
func (w *worker) toStack(j *journey) {
	p := j.packet
	if p.VNet.Flags&(packet.NeedsCsum|packet.DataValid) == 0 && p.Frag == packet.NoFrag && !p.ChecksumOK() {
		j.drop(Malformed)
		return
	}
	w.path.stack.Deliver(p, &w.turn, j.byStack())
}

// toHostSocket sends the packet over host sockets. A fragment first waits for the rest of its packet.
func (w *worker) toHostSocket(j *journey) {
	p := j.packet
	switch proto := p.Tuple.Proto; {
	case p.Frag == packet.LaterFrag && (proto == packet.ICMPv4 || proto == packet.ICMPv6),
		p.Frag != packet.NoFrag && (proto == packet.TCP || proto == packet.UDP || p.IsEchoRequest()):
		w.path.stack.Fragment(p, &w.turn)
	case proto == packet.TCP:
		w.toStack(j)
	case proto != packet.UDP && !p.IsEchoRequest():
		j.refuse(prohibited, NoRoute)
	case !p.ChecksumOK():
		j.drop(Malformed)
	case proto == packet.UDP:
		j.sent(w.path.stack.Datagram(p))
	default:
		j.sent(w.path.stack.Ping(p))
	}
}

// sent records the outcome of sending a packet through a host socket.
func (j *journey) sent(mtu int, err error) {
	switch {
	case err == nil:
	case errors.Is(err, udprelay.ErrTooBig), errors.Is(err, pingrelay.ErrTooBig):
		j.mtu = int32(mtu)
		j.refuse(tooBig, TooBig)
	case errors.Is(err, udprelay.ErrBusy):
		j.drop(HostBusy)
	default:
		j.fail(err)
	}
}

// fail ends the journey of a packet that a host socket could not send.
func (j *journey) fail(err error) {
	kind, ok := refusal.Kind(err)
	switch {
	case !ok:
		j.drop(HostBusy) // no socket is to be had, for instance: the pod may try again
	case kind == packet.NetUnreachable:
		j.refuse(noNet, NoRoute)
	case kind == packet.AdminProhibited:
		j.refuse(prohibited, NoRoute)
	case kind == packet.PortUnreachable:
		j.refuse(refused, NoRoute)
	default:
		j.refuse(noHost, NoRoute)
	}
}
