package share

// owner gives the owner of that key, which is made if it holds nothing yet.
func (l *Limit[K, V]) owner(key K) *owner[K, V] {
	if o := l.owners[key]; o != nil {
		return o
	}
	var o *owner[K, V]
	if n := len(l.spare); n > 0 {
		o, l.spare = l.spare[n-1], l.spare[:n-1]
	} else {
		o = new(owner[K, V])
	}
	*o = owner[K, V]{key: key, at: len(l.heap)}
	if l.options.Reserve > 0 && key == l.options.Own {
		o.reserve = l.options.Reserve
	}
	l.owners[key] = o
	l.heap = append(l.heap, o) // its charge is 0, so it is in its place
	return o
}

// dropIfEmpty forgets an owner without claims.
func (l *Limit[K, V]) dropIfEmpty(o *owner[K, V]) {
	if o.held > 0 {
		return
	}
	delete(l.owners, o.key)
	last := len(l.heap) - 1
	at := o.at
	l.swap(at, last)
	l.heap[last] = nil
	l.heap = l.heap[:last]
	if at < last {
		l.up(at) // what took the place of a charge of 0 can only be too far down
	}
	*o = owner[K, V]{}
	l.spare = append(l.spare, o)
}

func (l *Limit[K, V]) swap(i, j int) {
	l.heap[i], l.heap[j] = l.heap[j], l.heap[i]
	l.heap[i].at, l.heap[j].at = i, j
}

// up moves an owner whose charge grew.
func (l *Limit[K, V]) up(i int) {
	for i > 0 {
		above := (i - 1) / 2
		if l.heap[above].charge() >= l.heap[i].charge() {
			return
		}
		l.swap(i, above)
		i = above
	}
}

// down moves an owner whose charge fell.
func (l *Limit[K, V]) down(i int) {
	for {
		most := i
		for _, below := range [2]int{2*i + 1, 2*i + 2} {
			if below < len(l.heap) && l.heap[below].charge() > l.heap[most].charge() {
				most = below
			}
		}
		if most == i {
			return
		}
		l.swap(i, most)
		i = most
	}
}
