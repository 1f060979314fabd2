package limit

// Keys counts what is remembered.
func (l *Limiter) Keys() int { return len(l.whole) }
