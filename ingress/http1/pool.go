package http1

import (
	"errors"
	"net"
	"slices"
	"time"
)

// freshFor is how long a connection may have been idle before it is given a request that may not be sent twice. Servers
// close idle connections after 2 seconds at the earliest (gunicorn's default; 5 are usual).
const freshFor = time.Second

// take returns a connection to addr that was idle for no longer than fresh and can still be used, or nil. It takes the
// most recently used one first.
func (c *Client) take(addr string, fresh time.Duration) *conn {
	for {
		c.mu.Lock()
		s := c.origins[addr]
		if s == nil || len(s.idle) == 0 || time.Since(s.idle[len(s.idle)-1].idleSince) > fresh {
			c.mu.Unlock()
			return nil
		}
		cn := s.idle[len(s.idle)-1]
		c.drop(s, len(s.idle)-1)
		c.mu.Unlock()
		if cn.wake() {
			return cn
		}
	}
}

// put gives a connection on which nothing is left to read to the next request that waits for one, keeps it, or closes
// it when enough are kept.
func (c *Client) put(cn *conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		cn.Conn.Close()
		return
	}
	s := c.origin(cn.addr)
	if w := s.waiting.First(); w != nil && !(w.Value.fresh && cn.used) {
		s.waiting.Next()
		_ = cn.SetDeadline(time.Time{})
		w.Value.got <- given{conn: cn}
		return
	}
	if c.kept >= c.o.MaxIdle || len(s.idle) >= c.o.MaxIdlePerAddr {
		cn.Conn.Close()
		c.forget(s)
		return
	}
	// This deadline is set before wake can set its own, which must replace it.
	cn.idleSince = time.Now()
	_ = cn.SetReadDeadline(cn.idleSince.Add(c.o.IdleTimeout))
	cn.watched = make(chan bool, 1)
	s.idle = append(s.idle, cn)
	c.kept++
	go cn.watch()
}

// drop removes the i-th idle connection to s. mu is held.
func (c *Client) drop(s *origin, i int) {
	s.idle = slices.Delete(s.idle, i, i+1)
	c.kept--
	c.forget(s)
}

// leave removes cn from the idle connections and reports whether it was there.
func (c *Client) leave(cn *conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.origins[cn.addr]
	if s == nil {
		return false
	}
	i := slices.Index(s.idle, cn)
	if i >= 0 {
		c.drop(s, i)
	}
	return i >= 0
}

// watch reads from an idle connection until it ends, was idle for too long, or wake is called. Unexpected bytes of the
// server make the connection unusable, too.
func (cn *conn) watch() {
	var b [1]byte
	n, err := cn.Conn.Read(b[:])
	if cn.client.leave(cn) {
		cn.Conn.Close()
	}
	cn.watched <- n == 0 && timedOut(err)
}

// wake ends watch, and reports whether the connection can be used. The caller has removed it from the pool.
func (cn *conn) wake() bool {
	_ = cn.SetReadDeadline(longAgo)
	if !<-cn.watched {
		cn.Conn.Close()
		return false
	}
	_ = cn.SetDeadline(time.Time{}) // for writing, too: the last exchange set a deadline
	return true
}

// longAgo is a deadline that has passed.
var longAgo = time.Unix(1, 0)

func timedOut(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
}
