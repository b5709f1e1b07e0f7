package share

// Ranking orders accounts, so that the one with the largest charge is found at once. The zero Ranking is empty. It is
// not safe for concurrent use.
type Ranking[T any] struct {
	heap []*Account[T] // a heap: no account has a larger charge than the one above it
}

// Account holds the charge of one owner, and in Of whatever the caller knows of the owner. It is in one Ranking at
// most.
type Account[T any] struct {
	Of T

	charge, at int
}

// Charge returns the number of units that the account is charged for.
func (a *Account[T]) Charge() int { return a.charge }

// Len returns the number of accounts.
func (r *Ranking[T]) Len() int { return len(r.heap) }

// Most returns the account with the largest charge, any of them when several have it; nil when there are none.
func (r *Ranking[T]) Most() *Account[T] {
	if len(r.heap) == 0 {
		return nil
	}
	return r.heap[0]
}

// Add adds an account, with a charge of 0.
func (r *Ranking[T]) Add(a *Account[T]) {
	a.charge, a.at = 0, len(r.heap)
	r.heap = append(r.heap, a) // no charge is less, so the last place is right
}

// Remove removes an account.
func (r *Ranking[T]) Remove(a *Account[T]) {
	at, last := a.at, len(r.heap)-1
	r.swap(at, last)
	r.heap[last] = nil
	r.heap = r.heap[:last]
	if at < last {
		r.up(at)
		r.down(at)
	}
}

// Set changes the charge of an account.
func (r *Ranking[T]) Set(a *Account[T], charge int) {
	was := a.charge
	switch a.charge = charge; {
	case charge > was:
		r.up(a.at)
	case charge < was:
		r.down(a.at)
	}
}

func (r *Ranking[T]) swap(i, j int) {
	r.heap[i], r.heap[j] = r.heap[j], r.heap[i]
	r.heap[i].at, r.heap[j].at = i, j
}

func (r *Ranking[T]) up(i int) {
	for i > 0 {
		above := (i - 1) / 2
		if r.heap[above].charge >= r.heap[i].charge {
			return
		}
		r.swap(i, above)
		i = above
	}
}

func (r *Ranking[T]) down(i int) {
	for {
		most := i
		for _, below := range [2]int{2*i + 1, 2*i + 2} {
			if below < len(r.heap) && r.heap[below].charge > r.heap[most].charge {
				most = below
			}
		}
		if most == i {
			return
		}
		r.swap(i, most)
		i = most
	}
}
