//! The tables of services in the kernel, as [`lb_common::service_table`] lays
//! them out.

use std::collections::{BTreeSet, VecDeque};

use anyhow::Context as _;
use aya::Pod;
use aya::maps::{Array, MapData, MapError};
use lb_common::service::ServiceValue;
use lb_common::service_table::{
    INDEX_BLOCKS, InTable, IndexBlock, MAX_CHAIN, SERVICE_ENTRIES, ServiceEntry,
};

/// The services of one IP version.
pub struct ServiceTable<C: Cells> {
    cells: C,
    /// Numbers that no service has, the one that was given back first in front:
    /// so readers that are still there have left before it is used again.
    free: VecDeque<u32>,
}

/// Where the table's words are.
pub trait Cells {
    /// Key of a service.
    type Key: InTable;

    /// Reads a block of the index.
    fn block(&self, block: u32) -> Result<IndexBlock, MapError>;
    /// Writes it.
    fn set_block(&mut self, block: u32, value: &IndexBlock) -> Result<(), MapError>;
    /// Reads an entry.
    fn entry(&self, number: u32) -> Result<Entry<Self::Key>, MapError>;
    /// Writes it.
    fn set_entry(&mut self, number: u32, entry: &Entry<Self::Key>) -> Result<(), MapError>;
}

/// A service, and the number of the next one in its bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<K> {
    /// Its VIP, port and protocol.
    pub key: K,
    /// The service.
    pub value: ServiceValue,
    /// As in [`ServiceEntry`].
    pub next: u32,
}

impl<C: Cells> ServiceTable<C> {
    /// Takes over a table as it stands.
    ///
    /// # Errors
    /// If the kernel refuses, or if the table is none of ours.
    pub fn new(cells: C) -> anyhow::Result<Self> {
        let mut table = Self {
            cells,
            free: VecDeque::new(),
        };
        let mut used = BTreeSet::new();
        table.for_each_number(|number, _| {
            used.insert(number);
        })?;
        table.free = (1..SERVICE_ENTRIES)
            .filter(|number| !used.contains(number))
            .collect();
        Ok(table)
    }

    /// Every service.
    ///
    /// # Errors
    /// As for [`Self::new`].
    pub fn for_each(&self, mut visit: impl FnMut(C::Key, ServiceValue)) -> anyhow::Result<()> {
        self.for_each_number(|_, entry| visit(entry.key, entry.value))
    }

    /// Adds or replaces a service.
    ///
    /// # Errors
    /// If the kernel refuses, or if there is no room in the bucket or the table.
    pub fn insert(&mut self, key: C::Key, value: ServiceValue) -> anyhow::Result<()> {
        let (link, old) = self.find(key)?;
        let next = match old {
            Some((_, entry)) => entry.next,
            None => 0,
        };
        let number = self
            .free
            .pop_front()
            .context("the table of services is full")?;
        let written = self
            .cells
            .set_entry(number, &Entry { key, value, next })
            .and_then(|()| self.set(link, number));
        if let Err(error) = written {
            self.free.push_front(number);
            return Err(error.into());
        }
        self.free.extend(old.map(|(number, _)| number));
        Ok(())
    }

    /// Removes a service, if it is there.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn remove(&mut self, key: C::Key) -> anyhow::Result<()> {
        let (link, old) = self.find(key)?;
        if let Some((number, entry)) = old {
            self.set(link, entry.next)?;
            self.free.push_back(number);
        }
        Ok(())
    }

    /// The word that leads to a service, and its number and entry; or the word at
    /// the end of its bucket.
    #[expect(
        clippy::type_complexity,
        reason = "a name for what two callers take apart at once would say less"
    )]
    fn find(&self, key: C::Key) -> anyhow::Result<(Link, Option<(u32, Entry<C::Key>)>)> {
        let bucket = key.bucket();
        let mut link = Link::Bucket(bucket.block, bucket.place as usize);
        let mut number = self.cells.block(bucket.block)?.first[bucket.place as usize];
        for _ in 0..MAX_CHAIN {
            if number == 0 {
                return Ok((link, None));
            }
            let entry = self.cells.entry(number)?;
            if entry.key == key {
                return Ok((link, Some((number, entry))));
            }
            link = Link::Entry(number);
            number = entry.next;
        }
        anyhow::bail!(
            "{MAX_CHAIN} services fall into the same bucket of the table, and there is no room for \
             another: choose another port or VIP for this one, and please report this"
        )
    }

    /// Writes one word. The rest of its block or entry is written as it was:
    /// nobody else writes there, and readers see no difference.
    fn set(&mut self, link: Link, number: u32) -> Result<(), MapError> {
        match link {
            Link::Bucket(block, place) => {
                let mut value = self.cells.block(block)?;
                value.first[place] = number;
                self.cells.set_block(block, &value)
            }
            Link::Entry(before) => {
                let entry = self.cells.entry(before)?;
                let next = number;
                self.cells.set_entry(before, &Entry { next, ..entry })
            }
        }
    }

    fn for_each_number(&self, mut visit: impl FnMut(u32, &Entry<C::Key>)) -> anyhow::Result<()> {
        for block in 0..INDEX_BLOCKS {
            for mut number in self.cells.block(block)?.first {
                let mut length = 0;
                while number != 0 {
                    anyhow::ensure!(
                        length < MAX_CHAIN,
                        "the table of services is broken: `lb-ctl down`, then start it anew, and \
                         please report this"
                    );
                    let entry = self.cells.entry(number)?;
                    visit(number, &entry);
                    number = entry.next;
                    length += 1;
                }
            }
        }
        Ok(())
    }
}

/// The word that leads to an entry.
#[derive(Clone, Copy)]
enum Link {
    /// Of the index: block and place.
    Bucket(u32, usize),
    /// Of the entry before it.
    Entry(u32),
}

/// The two maps of an IP version.
pub struct ServiceMaps<K, const PADDING: usize>
where
    ServiceEntry<K, PADDING>: Pod,
{
    /// The numbers.
    pub index: Array<MapData, IndexBlock>,
    /// The entries.
    pub entries: Array<MapData, ServiceEntry<K, PADDING>>,
}

impl<K: InTable, const PADDING: usize> Cells for ServiceMaps<K, PADDING>
where
    ServiceEntry<K, PADDING>: Pod,
{
    type Key = K;

    fn block(&self, block: u32) -> Result<IndexBlock, MapError> {
        self.index.get(&block, 0)
    }

    fn set_block(&mut self, block: u32, value: &IndexBlock) -> Result<(), MapError> {
        self.index.set(block, value, 0)
    }

    fn entry(&self, number: u32) -> Result<Entry<K>, MapError> {
        let ServiceEntry {
            key, value, next, ..
        } = self.entries.get(&number, 0)?;
        Ok(Entry { key, value, next })
    }

    fn set_entry(&mut self, number: u32, entry: &Entry<K>) -> Result<(), MapError> {
        let &Entry { key, value, next } = entry;
        self.entries
            .set(number, ServiceEntry::new(key, value, next), 0)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    use lb_common::service::ServiceKeyV4;

    use super::*;

    /// A key whose bucket is as a test wants it.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    struct Key(u32);

    impl InTable for Key {
        fn bucket(&self) -> lb_common::service_table::Bucket {
            let mut bucket = ServiceKeyV4::from_packet(0, 0, 0).bucket();
            bucket.block = self.0 % 2;
            bucket
        }
    }

    /// Tables in memory, which are looked at as they are after each write.
    #[derive(Default)]
    struct Memory {
        index: BTreeMap<u32, IndexBlock>,
        entries: BTreeMap<u32, Entry<Key>>,
        /// What a reader may find of each key.
        may_be: RefCell<BTreeMap<Key, Vec<Option<u32>>>>,
    }

    impl Memory {
        /// As the packet path does it.
        fn look_up(&self, key: Key) -> Option<u32> {
            let bucket = key.bucket();
            let block = self.index.get(&bucket.block).copied().unwrap_or_default();
            let mut number = block.first[bucket.place as usize];
            for _ in 0..MAX_CHAIN {
                let entry = self.entries.get(&number)?;
                if entry.key == key {
                    return Some(entry.value.id);
                }
                number = entry.next;
            }
            None
        }

        fn check(&self) {
            for (&key, may_be) in &*self.may_be.borrow() {
                let found = self.look_up(key);
                assert!(
                    may_be.contains(&found),
                    "{key:?}: {found:?}, not {may_be:?}"
                );
            }
        }
    }

    impl Cells for Memory {
        type Key = Key;

        fn block(&self, block: u32) -> Result<IndexBlock, MapError> {
            Ok(self.index.get(&block).copied().unwrap_or_default())
        }

        fn set_block(&mut self, block: u32, value: &IndexBlock) -> Result<(), MapError> {
            self.index.insert(block, *value);
            self.check();
            Ok(())
        }

        fn entry(&self, number: u32) -> Result<Entry<Key>, MapError> {
            Ok(self.entries[&number])
        }

        fn set_entry(&mut self, number: u32, entry: &Entry<Key>) -> Result<(), MapError> {
            self.entries.insert(number, *entry);
            self.check();
            Ok(())
        }
    }

    fn value(id: u32) -> ServiceValue {
        ServiceValue {
            id,
            ..ServiceValue::default()
        }
    }

    fn content<C: Cells<Key = Key>>(table: &ServiceTable<C>) -> BTreeMap<Key, u32> {
        let mut content = BTreeMap::new();
        table
            .for_each(|key, value| assert_eq!(content.insert(key, value.id), None))
            .unwrap();
        content
    }

    /// Changes in every order that chance finds, in two crowded buckets: after
    /// each write a reader finds every service, as it was or as it is.
    #[test]
    fn a_reader_finds_every_service_at_any_moment() {
        let mut table = ServiceTable::new(Memory::default()).unwrap();
        let mut wanted: BTreeMap<Key, u32> = BTreeMap::new();
        let mut chance = 1_u32;
        for id in 1..50_000 {
            chance = chance.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let key = Key((chance >> 8) % (2 * MAX_CHAIN));
            let before = wanted.get(&key).copied();
            let is_removed = chance >> 30 == 0;
            let after = (!is_removed).then_some(id);
            let mut may_be = table.cells.may_be.borrow_mut();
            may_be.insert(key, vec![before, after]);
            drop(may_be);
            match after {
                Some(id) => {
                    wanted.insert(key, id);
                    table.insert(key, value(id)).unwrap();
                }
                None => {
                    wanted.remove(&key);
                    table.remove(key).unwrap();
                }
            }
            table.cells.may_be.borrow_mut().insert(key, vec![after]);
            table.cells.check();
        }
        assert_eq!(content(&table), wanted);
        let unused = table.free.len();
        let table = ServiceTable::new(table.cells).unwrap();
        assert_eq!(content(&table), wanted);
        assert_eq!(table.free.len(), unused);
        assert_eq!(unused + wanted.len(), SERVICE_ENTRIES as usize - 1);
    }

    #[test]
    fn an_entry_that_was_taken_out_is_left_alone_for_long() {
        let mut table = ServiceTable::new(Memory::default()).unwrap();
        table.insert(Key(0), value(1)).unwrap();
        let used: Vec<u32> = (0..1000)
            .map(|_| {
                let number = table.free[0];
                table.insert(Key(0), value(1)).unwrap();
                number
            })
            .collect();
        assert_eq!(used.iter().collect::<BTreeSet<_>>().len(), used.len());
    }

    #[test]
    fn a_bucket_that_is_full_is_told() {
        let mut table = ServiceTable::new(Memory::default()).unwrap();
        for n in 0..MAX_CHAIN {
            table.insert(Key(2 * n), value(n)).unwrap();
        }
        let before = content(&table);
        let error = table.insert(Key(2 * MAX_CHAIN), value(0)).unwrap_err();
        assert!(error.to_string().contains("no room"), "{error}");
        assert_eq!(content(&table), before);
        table.insert(Key(0), value(7)).unwrap();
        table.remove(Key(2)).unwrap();
        table.insert(Key(2 * MAX_CHAIN), value(0)).unwrap();
    }
}
