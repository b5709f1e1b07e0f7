package tcprelay

import "time"

const (
	// look is the interval at which a conn checks whether the pod has sent anything. lookMost is how many checks in a
	// row may find nothing.
	look     = 30 * time.Second
	lookMost = 4
)

// inquire passes a pod's keep-alive probe on to the far end, and answers the pod when the far end has answered.
func (c *conn) inquire(notes uint32) {
	far := &c.to.far
	answered := false
	switch {
	case notes&probed != 0:
		answered = far.Ask(c.fd, time.Now())
	case far.Open():
		answered = far.Look(c.fd, time.Now())
	default:
		return
	}
	if answered {
		c.acknowledge()
	} else if far.Open() {
		c.timer.set(far.Pause())
	}
}

// podLives reports whether the pod's end of an open connection still exists. It probes a silent pod. The far end cannot
// find this out, because the host's kernel answers its probes whatever happened to the pod.
func (c *conn) podLives(notes uint32) bool {
	t := &c.to
	if t.lookAt != 0 && notes&timeUp == 0 {
		return true
	}
	now := c.r.now()
	switch {
	case t.lookAt == 0: // the connection has just been opened
		t.lookAt = now + look
	case now < t.lookAt:
	case c.heard.Swap(false):
		t.lookAt, t.silent = now+look, 0
	default:
		t.lookAt = now + look
		t.silent++
		c.probe()
	}
	c.timer.set(t.lookAt - now)
	return t.silent <= lookMost
}
