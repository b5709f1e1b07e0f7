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
		list := c.idle[addr]
		if len(list) == 0 || time.Since(list[len(list)-1].idleSince) > fresh {
			c.mu.Unlock()
			return nil
		}
		cn := list[len(list)-1]
		c.drop(addr, len(list)-1)
		c.mu.Unlock()
		if cn.wake() {
			return cn
		}
	}
}

// put keeps a connection on which nothing is left to read, or closes it when enough are kept.
func (c *Client) put(cn *conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := c.idle[cn.addr]
	if c.closed || c.kept >= c.o.MaxIdle || len(list) >= c.o.MaxIdlePerAddr {
		cn.Conn.Close()
		return
	}
	// This deadline is set before wake can set its own, which must replace it.
	cn.idleSince = time.Now()
	_ = cn.SetReadDeadline(cn.idleSince.Add(c.o.IdleTimeout))
	cn.watched = make(chan bool, 1)
	c.idle[cn.addr] = append(list, cn)
	c.kept++
	go cn.watch()
}

// drop removes the i-th connection to addr from the pool. mu is held.
func (c *Client) drop(addr string, i int) {
	list := slices.Delete(c.idle[addr], i, i+1)
	if c.kept--; len(list) == 0 {
		delete(c.idle, addr)
		return
	}
	c.idle[addr] = list
}

// forget removes cn from the pool and reports whether it was there.
func (c *Client) forget(cn *conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.Index(c.idle[cn.addr], cn)
	if i >= 0 {
		c.drop(cn.addr, i)
	}
	return i >= 0
}

// watch reads from an idle connection until it ends, was idle for too long, or wake is called. Unexpected bytes of the
// server make the connection unusable, too.
func (cn *conn) watch() {
	var b [1]byte
	n, err := cn.Conn.Read(b[:])
	if cn.client.forget(cn) {
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
