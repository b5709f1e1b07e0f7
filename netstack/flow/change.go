package flow

// Change is a step in the life of a flow with a Backend.
type Change struct {
	// Ref names the flow, as long as it exists. Another flow may have it later.
	Ref     uint32
	Backend uint64
	Kind    uint8
	// Dir is the direction of the packet that made the change. It is Original when the flow begins or leaves the table.
	Dir Dir
	// Goes is set when the backend of a connection had said something already: a connection that was reset is in
	// SynSent again when its client goes on (revived).
	Goes bool
	// Was is 0 when the flow begins, and Is is 0 when it leaves the table.
	Was, Is State
}

// OnChange makes the table call changed at every change of the state of a flow with a Backend, and once now for every
// such flow that is in the table already. Was of the first call is 0, Is of the last one too, and what each call
// returns from Open and Waiting adds up to what is. Calls about one flow may come in another order than its changes.
// changed must be quick, and neither block nor allocate. OnChange must be called before the table is shared.
func (t *Table) OnChange(changed func(Change)) {
	t.changed = changed
	var r record
	for i := range t.used.Load() {
		s := &t.slots[i]
		seq, state := s.seq.Load(), s.loadLive().state()
		if state != free && t.load(i, &r, seq) {
			t.tell(i, seq, &r, free, state)
		}
	}
}

// OnAnswer makes the table call answered with the ref of a flow, be it to a Backend or not, at its first answer:
// SYN-ACK, or a datagram. A refusal is none. Flows of protocols in which nothing tells an answer have none. answered
// must be quick, and neither block nor allocate. OnAnswer must be called before the table is shared.
func (t *Table) OnAnswer(answered func(ref uint32)) { t.answered = answered }

// tell tells of a change that no packet made.
func (t *Table) tell(i, seq uint32, r *record, was, is State) {
	if t.changed != nil && r.backend != 0 {
		t.changed(Change{Ref: ref(i, seq), Backend: r.backend, Kind: uint8(r.meta >> metaKind), Was: was, Is: is})
	}
}

// Open returns by how much the change raises the number of open flows: 1, 0 or -1. A flow is open from its first packet
// until both ends have closed it, one has reset it, or its time is over.
func (c *Change) Open() int64 { return number(c.Is.open()) - number(c.Was.open()) }

// Waiting returns by how much the change raises the number of flows that nobody has answered yet.
func (c *Change) Waiting() int64 { return number(c.Is.waiting()) - number(c.Was.waiting()) }

// Answered reports whether the packet is the first answer of a flow.
func (c *Change) Answered() bool {
	return c.Dir == Reply && !c.Goes && c.Was.waiting() && c.Is.open() && !c.Is.waiting()
}

// Refused reports whether the packet is a reset that answers an attempt to connect.
func (c *Change) Refused() bool { return c.Dir == Reply && !c.Goes && c.Was.waiting() && c.Is == Reset }

func (s State) open() bool { return s != free && s != TimeWait && s != Reset && s != Closed }

func (s State) waiting() bool { return s == SynSent || s == Unreplied }

func number(b bool) int64 {
	if b {
		return 1
	}
	return 0
}
