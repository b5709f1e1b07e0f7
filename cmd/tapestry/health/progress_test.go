package health

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewProgress()
		if !p.Updated().IsZero() || p.Alive() != nil || !p.Eligible() {
			t.Error("a node that has not begun is stuck or leaving")
		}
		end := p.Begin()
		time.Sleep(stuckTime)
		if p.Alive() != nil {
			t.Error("stuck too early")
		}
		time.Sleep(time.Second)
		if p.Alive() == nil {
			t.Error("a snapshot that takes more than a minute is no problem")
		}
		end(true, errors.New("half"))
		if p.Alive() != nil || !p.Updated().IsZero() || p.Eligible() {
			t.Error("after a snapshot of which only half was applied, on a node that leaves")
		}
		end = p.Begin()
		time.Sleep(time.Second)
		end(false, nil)
		if !p.Updated().Equal(time.Now()) || !p.Eligible() {
			t.Error("after a good snapshot")
		}
		list := p.Counters()
		for _, name := range []string{"tapestry_sync_duration_seconds", "kubeproxy_sync_proxy_rules_duration_seconds"} {
			if v := list.Find(name).Values[0]; v.Count != 2 || v.N != (stuckTime+2*time.Second).Seconds() {
				t.Errorf("%s: %+v", name, v)
			}
		}
		if list.Get("tapestry_sync_failures_total") != 1 || list.Get("kubeproxy_sync_proxy_rules_last_timestamp_seconds") != float64(time.Now().Unix()) {
			t.Errorf("got %+v", list)
		}
	})
}

func TestTriggered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewProgress()
		p.Triggered([]time.Time{time.Now().Add(-3 * time.Second), time.Now().Add(time.Hour)})
		for _, name := range []string{"tapestry_network_programming_duration_seconds", "kubeproxy_network_programming_duration_seconds"} {
			got := p.Counters().Find(name).Values[0]
			if got.Count != 2 || got.N != 3 || got.Buckets[0].Count != 1 {
				t.Errorf("%s: %+v", name, got)
			}
		}
	})
}
