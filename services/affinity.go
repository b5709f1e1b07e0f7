package services

import (
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/services/affinity"
)

// remembered returns the backend of the client's session at the frontend's Service port, and begins a session if the
// client has none, or if its backend is not in the set. there is the node at whose address a client in the cluster asks
// for that node's own endpoints, else "". Such a client has a session for each of these nodes, as with kube-proxy,
// where each node has a memory of its own.
func (t *Table) remembered(f *front, s *set, there string, client *packet.Addr) *backend {
	svc := t.config.Services.At(int(f.service))
	k := affinity.Key{Client: *client, Port: portID(svc, &svc.Ports[f.port]), Inside: t.fromInside(client)}
	if there != "" {
		k.Port = hashString(k.Port, there)
	}
	session := t.Affinity.Find(&k, svc.Affinity)
	if session.Backend != 0 {
		if b := s.backend(session.Backend); b != nil {
			return b
		}
	}
	b := s.winner(sessionHash(client, session.Turn))
	session.Backend = b.id
	t.Affinity.Keep(&k, session, svc.Affinity)
	return b
}

// sessionHash takes the place of flowHash under session affinity. It covers only the client's address, and how many of
// its sessions have ended in time: an ended session does not bind the next one.
func sessionHash(client *packet.Addr, turn uint32) uint64 {
	h := clientHash(client)
	if turn > 0 {
		h = mix(h^uint64(turn)*mixA, mixC)
	}
	return h
}

// backend returns the backend with that id, nil if the set has none.
func (s *set) backend(id uint64) *backend {
	i, found := s.search(id)
	if !found {
		return nil
	}
	return s.at(i)
}

// changedOf returns the backends with which clients might have sessions in one of two states and not in the other.
// pieces are those that differ. Sessions with a backend that left end. So do those with one that comes: they were begun
// with a Table that did not know yet that the backend had left. One that only goes from one piece to another stays.
func changedOf(was, is *states, pieces []*piece) (changed map[uint64]struct{}) {
	for _, p := range pieces {
		if !p.affinity {
			continue
		}
		for _, s := range p.states {
			if !s.sticky || was.sticky(s.id) == is.sticky(s.id) {
				continue
			}
			if changed == nil {
				changed = map[uint64]struct{}{}
			}
			changed[s.id] = struct{}{}
		}
	}
	return changed
}
