package policy

import "math/rand/v2"

// Slow is the slow twin.
var Slow = slow

// Random makes random Configs, each of which differs a little from the one before, and flows in them.
type Random struct {
	Config
	maker
}

// NewRandom returns the first of the Configs that follow from a seed.
func NewRandom(seed uint64) *Random {
	return &Random{twoNodes(), maker{rand.New(rand.NewPCG(seed, 1))}}
}

// Next changes the Config.
func (r *Random) Next() { r.Config = r.next(r.Config) }

// Flow returns a flow.
func (r *Random) Flow() Flow { return r.flow(&r.Config) }
