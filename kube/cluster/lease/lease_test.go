package lease

import (
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
)

// TestDecide checks what a process does about a Lease. The times in a Lease are another clock's: only whether it
// changes counts.
func TestDecide(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	held := func(by string, seconds int32) *coordinationv1.Lease {
		return &coordinationv1.Lease{Spec: coordinationv1.LeaseSpec{HolderIdentity: &by, LeaseDurationSeconds: &seconds}}
	}
	for name, tc := range map[string]struct {
		seen observation
		want action
	}{
		"there is none":             {observation{nil, now}, create},
		"nobody's":                  {observation{held("", 15), now}, take},
		"without a holder":          {observation{&coordinationv1.Lease{}, now}, take},
		"ours":                      {observation{held("me", 15), now.Add(-time.Hour)}, extend},
		"another's":                 {observation{held("other", 15), now}, wait},
		"another's, about to end":   {observation{held("other", 15), now.Add(-15 * time.Second)}, wait},
		"another's, not renewed":    {observation{held("other", 15), now.Add(-15*time.Second - 1)}, take},
		"another's, which is short": {observation{held("other", 2), now.Add(-3 * time.Second)}, take},
		"another's, which is long":  {observation{held("other", 60), now.Add(-50 * time.Second)}, wait},
	} {
		if got := decide(tc.seen, "me", now); got != tc.want {
			t.Errorf("%s: %d, want %d", name, got, tc.want)
		}
	}
	if renewal >= duration {
		t.Error("a leader would go on when another one has begun")
	}
}
